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
Times = Mapping[str, Mapping[str, float]]

FIGURES = {
    "negatives": ("Number of negatives", "negatives per question", "as the paper's Figure 4"),
    "augmented": ("Amount of augmented data", "training examples", "as the paper's Figure 6"),
}
TABLES = {
    "also": ("Other rules", "dual_1 with one other rule, beside the paper's (dual_1)."),
    "weights": ("Other initial weights", "dual_0 from other weights, beside the recipe's (dual_0),"
                " as the paper's Table 6."),
}  # fmt: skip
"""Tables beside the first: what each is called, and what it is compared with."""


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
        "times": {row: mean_seconds(times, row) for row in times},
        "bars": plots.rows_of_bars(shown["rows"]),
        "tables": {kind: words for kind, words in TABLES.items() if kind in shown},
        "lines": {kind: shown[kind] for kind in TABLES if kind in shown},
        "figures": list(_figures(shown)),
        "by_rank": _by_rank(shown["removed"]),
    }


def _figures(shown: Shown) -> Iterator[tuple[str, str, Markup]]:
    for kind, (title, x, source) in FIGURES.items():
        if kind in shown:
            yield title, source, plots.points(kind, shown[kind], x, log=kind == "negatives")


def _by_rank(removed: Mapping[str, Sequence[float]]) -> Markup | None:
    shares = {name: np.array(values) for name, values in removed.items()}
    return plots.by_rank(shares) if any(len(s) and s.any() for s in shares.values()) else None


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
        f"{found['p']:.4f}" if found else "",
        "" if row["paper"] is None else f"{row['paper']:.4f}",
    ]


def mean_seconds(times: Times, row: str) -> float | None:
    """Of a row, over seeds; None where nothing was trained."""
    return sum(times[row].values()) / len(times[row]) if row in times else None


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
    for kind, (title, words) in TABLES.items():
        if kind in shown:
            lines += ["", f"## {title}", "", words, "", *_markdown_table(shown[kind], times)]
    for kind, (title, x, source) in FIGURES.items():
        if kind in shown:
            lines += ["", f"## {title}", "", f"{source[:1].upper()}{source[1:]}.", "",
                      f"| {x} | {shown['measure']} | spread |", "| --: | --: | --: |",
                      *(f"| {p['x']:,.0f} | {p['mean']:.4f} |"
                        f" {'' if p['spread'] is None else format(p['spread'], '.4f')} |"
                        for p in shown[kind])]  # fmt: skip
    return "\n".join(lines) + "\n"


def _markdown_table(rows: Sequence[Mapping[str, Any]], times: Times) -> Iterator[str]:
    yield "| row | mean | spread | difference | p | paper, MARCO | steps | seconds |"
    yield "| --- | --: | --: | --: | --: | --: | --: | --: |"
    for row in rows:
        took = mean_seconds(times, row["row"])
        steps = "" if row["steps"] is None else f"{row['steps']:,.0f}"
        seconds = "" if took is None else f"{took:,.0f}"
        yield f"| {' | '.join([row['words'], *cells(row), steps, seconds])} |"
