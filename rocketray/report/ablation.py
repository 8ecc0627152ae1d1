"""The report of an ablation: a page for browsers and one for people who paste tables.

Everything comes from what ablation.json and times.json hold; the same numbers give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from rocketray import artifacts
from rocketray.report import environment, plots

Shown = Mapping[str, Any]
Times = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Seconds by kind (see `TIMES`), row and seed."""

FIGURES = {
    "negatives": ("Number of negatives", "negatives per question",
                  "as the paper's Figure 4; all points train equally many steps"),
    "augmented": ("Amount of augmented data", "training examples",
                  "as the paper's Figure 6; all points train equally many epochs, so that more"
                  " examples are also more steps"),
}  # fmt: skip
TABLES = {
    "also": ("Other rules", "dual_1 with one other rule, beside the paper's (dual_1).",
             "to dual_1"),
    "weights": ("Other initial weights", "dual_0 from other weights, all of their layers, beside"
                " the recipe's with all of theirs (the first row), as the paper's Table 6.",
                "to the first row"),
}  # fmt: skip
"""Tables beside the first: what each is called, what it holds, and what it is compared with."""
TIMES = {"own": "seconds, its own", "needed": "with what it needs"}
"""What a row's own stages took, and these with all that they rest on."""
HAD = {
    "kept": "kept",
    "removed": "removed as relevant",
    "uncertain": "removed as uncertain",
    "near": "removed as near the positive",
    "filled": "negatives from elsewhere",
    "unlike": "examples not dual_1's",
    "taught": "examples with both ce_scores",
    "masked": "cells masked a step",
    "masked_by_margin": "masked by margin",
}
"""What rules had to work with (`evidence.py`): shares but for the last two."""


def write(folder: Path, shown: Shown, times: Times) -> None:
    """Write ablation.html and ablation.md into a folder."""
    html = environment().get_template("ablation.html.jinja").render(context(shown, times))
    artifacts.write_text(folder / "ablation.html", html)
    artifacts.write_text(folder / "ablation.md", markdown(shown, times))


def context(shown: Shown, times: Times) -> dict[str, Any]:
    """All that the template shows."""
    return {
        **shown,
        "sentences": sentences(shown),
        "cells": cells,
        "interval": interval,
        "steps": steps,
        "times": TIMES,
        "seconds": lambda row: seconds(row, times),
        "bars": plots.rows_of_bars(shown["rows"]),
        "tables": {kind: words for kind, words in TABLES.items() if kind in shown},
        "lines": {kind: shown[kind] for kind in TABLES if kind in shown},
        "figures": list(_figures(shown)),
        "by_rank": _by_rank(shown["removed"]),
        "had": HAD,
        "worked_with": list(worked_with(shown)),
    }


def _figures(shown: Shown) -> Iterator[tuple[str, str, Markup]]:
    for kind, (title, x, source) in FIGURES.items():
        if kind in shown:
            yield title, source, plots.points(kind, shown[kind], x, log=kind == "negatives")


def _by_rank(removed: Mapping[str, Sequence[float]]) -> Markup | None:
    shares = {name: np.array(values) for name, values in removed.items()}
    some = any(share.any() for share in shares.values())
    return plots.removed_by_rank(shares) if some else None


def sentences(shown: Shown) -> list[str]:
    """What the table says, in words."""
    return [shown["order"], *(claim["words"] for claim in shown["claims"])]


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row's numbers as people read them: mean, spread, difference, p, the paper's."""
    found = row["against"] or {}
    return [
        f"{row['mean']:.4f}",
        "" if row["spread"] is None else f"{row['spread']:.4f}",
        f"{found['difference']:+.4f}" if found else "",
        f"{found.get('p_holm', found['p']):.4f}" if found else "",
        "" if row["paper"] is None else f"{row['paper']:.4f}",
    ]


def interval(row: Mapping[str, Any]) -> str:
    """Where the difference lies in 95 % of draws of seeds and questions."""
    if not row["against"]:
        return ""
    low, high = row["against"]["interval"]
    return f"{low:+.4f} to {high:+.4f}"


def steps(row: Mapping[str, Any]) -> str:
    return "" if row["steps"] is None else f"{row['steps']:,.0f}"


def mean_seconds(times: Mapping[str, Mapping[str, float]], row: str) -> float | None:
    """Of a row, over seeds; None where nothing was trained."""
    return sum(times[row].values()) / len(times[row]) if row in times else None


def seconds(row: Mapping[str, Any], times: Times) -> list[str]:
    """Of each kind."""
    found = [mean_seconds(times[kind], row["row"]) for kind in TIMES]
    return ["" if took is None else f"{took:,.0f}" for took in found]


def worked_with(shown: Shown) -> Iterator[tuple[str, list[str]]]:
    """Of each row with hard negatives: what its rule had to work with, in the order of `HAD`."""
    for row in [*shown["rows"], *shown.get("also", [])]:
        if had := row["had"]:
            yield row["words"], [_amount(fact, had.get(fact)) for fact in HAD]


def _amount(fact: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.1f}" if fact.startswith("masked") else f"{value:.1%}"


def markdown(shown: Shown, times: Times) -> str:
    """The same as a page of Markdown."""
    seeds = ", ".join(map(str, shown["seeds"]))
    lines = [
        f"# Ablation: {shown['recipe']}",
        "",
        f"{shown['questions']:,} {shown['split']} questions; seeds {seeds}; {shown['measure']}.",
        "",
        *_markdown_table(shown["rows"], times),
        "",
        *(f"- {sentence}" for sentence in sentences(shown)),
        *(f"- {note}" for note in shown["notes"]),
    ]
    for kind, (title, words, _) in TABLES.items():
        if kind in shown:
            lines += ["", f"## {title}", "", words, "", *_markdown_table(shown[kind], times)]
    lines += ["", "## What each rule had to work with", "", *_markdown_had(shown)]
    for kind, (title, x, source) in FIGURES.items():
        if kind in shown:
            lines += ["", f"## {title}", "", f"{source[:1].upper()}{source[1:]}.", "",
                      f"| {x} | {shown['measure']} | spread | steps |",
                      "| --: | --: | --: | --: |",
                      *(f"| {p['x']:,.0f} | {p['mean']:.4f} |"
                        f" {'' if p['spread'] is None else format(p['spread'], '.4f')} |"
                        f" {steps(p)} |" for p in shown[kind])]  # fmt: skip
    return "\n".join(lines) + "\n"


def _markdown_table(rows: Sequence[Mapping[str, Any]], times: Times) -> Iterator[str]:
    names = ("row", "mean", "spread", "difference", "p", "paper, MARCO", "95 %", "steps",
             *TIMES.values())  # fmt: skip
    yield f"| {' | '.join(names)} |"
    yield f"| --- |{' --: |' * (len(names) - 1)}"
    for row in rows:
        numbers = [*cells(row), interval(row), steps(row), *seconds(row, times)]
        yield f"| {' | '.join([row['words'], *numbers])} |"


def _markdown_had(shown: Shown) -> Iterator[str]:
    yield f"| row | {' | '.join(HAD.values())} |"
    yield f"| --- |{' --: |' * len(HAD)}"
    for words, amounts in worked_with(shown):
        yield f"| {' | '.join([words, *amounts])} |"
