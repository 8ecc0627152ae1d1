"""Rows of an ablation beside each other: means, spreads, differences, and the paper's order.

A row has one measured frame per seed, over the same questions. Its mean is over questions and
seeds, its spread the standard deviation over seeds (training luck). Two rows are compared question
by question, each question's value averaged over seeds first, so p speaks of the questions and not
of the seeds; questions about one passage count as one witness (`Measured.groups`). Training luck
comes in by two other ways: how many seeds agree in sign, and an interval of the difference from
draws of seeds and of questions (`measures.interval`).

A difference is called sure where p is below 0.05 and at least two seeds were trained which all have
its sign. Differences that are asked together (the paper's order; all other rules) have their p
corrected for how many they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rocketray import measures

MEASURE = "mrr@10"
"""What the paper's tables 3 and 6 hold, on MS MARCO."""
SURE = 0.05
"""A p-value below this is called more than luck of the questions."""
HAD = (
    "kept", "removed", "uncertain", "near", "filled", "taught", "unlike", "masked",
    "masked_by_margin",
)  # fmt: skip
"""Facts of a row that say what its rule had to work with: `evidence.facts` counts them."""

PAPER = {
    "in_batch": 0.3239,
    "dual_0": 0.3332,
    "undenoised": 0.2603,
    "dual_1": 0.3638,
    "dual_2": 0.3702,
}
"""Table 3 of the paper: MRR@10 on MS MARCO's dev questions."""

ORDER = (
    ("dual_0", "in_batch"),
    ("dual_0", "undenoised"),
    ("dual_1", "undenoised"),
    ("dual_1", "dual_0"),
    ("dual_2", "dual_1"),
)
"""What the paper finds: the first row of each pair above the second."""


@dataclass(frozen=True)
class Measured:
    """One row: a frame of measures by question for each seed, and what each training counted."""

    name: str
    words: str
    frames: Sequence[pd.DataFrame]
    facts: Sequence[Mapping[str, Any]]
    groups: pd.Series | None = None
    """Of each question, as `measures.compare` takes them."""

    def by_seed(self, measure: str = MEASURE) -> list[float]:
        return [float(frame[measure].mean()) for frame in self.frames]

    def by_question(self, measure: str = MEASURE) -> pd.Series:
        """Each question's value, averaged over seeds."""
        return pd.concat([frame[measure] for frame in self.frames], axis=1).mean(axis=1)

    def counted(self, fact: str) -> float | None:
        """A fact's mean over seeds; None where no seed has it."""
        found = [facts[fact] for facts in self.facts if fact in facts]
        return _short(np.mean(found)) if found else None


def table_order(in_batch: str) -> list[str]:
    """Rows of the table; `in_batch` is the name of its row, which says the group's size."""
    return ["bm25", "initial", in_batch, "dual_0", "undenoised", "dual_1", "dual_2", "reranked"]


def compared(
    rows: Mapping[str, Measured], in_batch: str, kinds: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Everything that ablation.json says of rows.

    Args:
        in_batch: the in-batch row's name.
        kinds: further rows: `also` (against dual_1), `weights` (against the first of them), and the
            points of the figures `negatives` and `augmented`.
    """
    table = [rows[name] for name in table_order(in_batch) if name in rows]
    above = [None, *table[:-1]]
    paper = {**PAPER, in_batch: PAPER["in_batch"]}
    pairs = [
        (rows[better], rows[worse])
        for better, worse in ((_named(a, in_batch), _named(b, in_batch)) for a, b in ORDER)
        if better in rows and worse in rows
    ]
    longer = rows.get("also_longer") if "dual_2" in rows else None
    # Where it was made, it answers the same question as dual_2 against dual_1, and is one more.
    asked = corrected([*pairs, *([(rows["dual_2"], longer)] if longer else [])])
    augmentation = asked.pop() if longer else None
    found: dict[str, Any] = {
        "measure": MEASURE,
        "questions": len(table[0].frames[0]),
        "rows": [
            line(row, None if other is None else against(row, other), paper.get(row.name))
            for row, other in zip(table, above, strict=True)
        ],
        "claims": [
            claim(better, worse, one, paper[better.name] - paper[worse.name], augmentation)
            for (better, worse), one in zip(pairs, asked, strict=True)
        ],
    }
    found["order"] = order(found["claims"])
    if augmentation:
        found["augmentation"] = augmentation
    if "also" in kinds:
        found["also"] = _beside([rows[name] for name in kinds["also"]], rows["dual_1"])
    if "weights" in kinds:
        first, *others = (rows[name] for name in kinds["weights"])
        found["weights"] = [line(first, None), *_beside(others, first)]
    for kind, fact in (("negatives", "negatives_per_query"), ("augmented", "rows")):
        if kind in kinds:
            found[kind] = [point(rows[name], fact) for name in kinds[kind] if name in rows]
    return found


def _named(row: str, in_batch: str) -> str:
    return in_batch if row == "in_batch" else row


def _beside(rows: Sequence[Measured], base: Measured) -> list[dict[str, Any]]:
    """Rows that are all compared with one."""
    found = corrected([(row, base) for row in rows])
    return [line(row, one) for row, one in zip(rows, found, strict=True)]


def line(
    row: Measured, found: Mapping[str, Any] | None, paper: float | None = None
) -> dict[str, Any]:
    """One row as ablation.json has it.

    Args:
        found: how it compares with another, where there is one.
    """
    return {
        "row": row.name,
        "words": row.words,
        "mean": _short(np.mean(row.by_seed())),
        "spread": spread(row.by_seed()),
        "by_seed": [_short(value) for value in row.by_seed()],
        "measures": {name: _short(np.mean(row.by_seed(name))) for name in row.frames[0].columns},
        "against": found,
        "paper": paper,
        "steps": row.counted("steps"),
        "examples": row.counted("rows"),
        "negatives": row.counted("negatives_per_query"),
        "had": {fact: row.counted(fact) for fact in HAD if row.counted(fact) is not None},
    }


def point(row: Measured, fact: str) -> dict[str, Any]:
    """One point of a figure: a count, the measure, and how many steps were trained for it."""
    values = row.by_seed()
    return {"row": row.name, "x": row.counted(fact), "mean": _short(np.mean(values)),
            "spread": spread(values), "steps": row.counted("steps")}  # fmt: skip


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n - 1); None of a single one."""
    return _short(np.std(values, ddof=1)) if len(values) > 1 else None


def against(row: Measured, other: Measured) -> dict[str, Any]:
    """Difference, its interval over seeds and questions, its p-value (paired, two-sided, over
    questions), and how many seeds have a gain and a loss."""
    found = measures.compare(row.by_question(), other.by_question(), groups=row.groups)
    apart = [a[MEASURE] - b[MEASURE] for a, b in zip(row.frames, other.frames, strict=True)]
    low, high = measures.interval(pd.concat(apart, axis=1), groups=row.groups)
    pairs = list(zip(row.by_seed(), other.by_seed(), strict=True))
    return {
        "row": other.name,
        "difference": _short(found.difference),
        "interval": [_short(low), _short(high)],
        "p": _short(found.p_value),
        "seeds": len(pairs),
        "seeds_above": sum(a > b for a, b in pairs),
        "seeds_below": sum(a < b for a, b in pairs),
    }


def corrected(pairs: Iterable[tuple[Measured, Measured]]) -> list[dict[str, Any]]:
    """`against` of pairs that are asked together: with `p_holm`, and whether each is `sure`."""
    found = [against(*pair) for pair in pairs]
    p_holms = holm([one["p"] for one in found])
    return [
        one | {"p_holm": _short(p), "sure": p < SURE and seeds_agree(one)}
        for one, p in zip(found, p_holms, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that of all that are below 0.05 with nothing behind
    them even one is found in 5 % of cases at most (Holm, 1979): the smallest of n counts n times,
    the next n - 1 times, and none less than one before it."""
    found = np.zeros(len(p_values))
    highest = 0.0
    for place, number in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, (len(p_values) - place) * p_values[number])
        found[number] = min(1.0, highest)
    return [float(p) for p in found]


def seeds_agree(found: Mapping[str, Any]) -> bool:
    """At least two seeds, and all with the sign of the difference: each of them one draw of
    training luck."""
    side = "seeds_above" if found["difference"] > 0 else "seeds_below"
    return bool(found["seeds"] > 1 and found[side] == found["seeds"])


def claim(
    better: Measured, worse: Measured, found: Mapping[str, Any], paper: float,
    augmentation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Whether one of the paper's differences is there.

    Args:
        found: of `corrected`.
        augmentation: of dual_2 against dual_1 for as many steps, where that was made.
    """
    difference = found["difference"]
    words = (
        f"{better.name} above {worse.name}: {difference:+.4f} (paper {paper:+.4f}),"
        f" {told(found)}: {verdict(found)}."
    )
    words += in_steps(better, worse)
    if (better.name, worse.name) == ("dual_2", "dual_1") and augmentation:
        words += (
            f" Against dual_1 for as many steps (also_longer):"
            f" {augmentation['difference']:+.4f}, {told(augmentation)}: {verdict(augmentation)}."
        )
    return {
        "better": better.name,
        "worse": worse.name,
        **{name: value for name, value in found.items() if name != "row"},
        "paper": _short(paper),
        "holds": difference > 0,
        "words": words,
    }


def in_steps(better: Measured, worse: Measured) -> str:
    """How much longer one was trained than the other, in a sentence; empty where it was not."""
    steps, others = better.counted("steps"), worse.counted("steps")
    if steps is None or others is None or round(steps) == round(others):
        return ""
    return f" {better.name} trains {steps:,.0f} steps, {worse.name} {others:,.0f}."


def told(found: Mapping[str, Any]) -> str:
    """Interval, p and seeds of a difference in words."""
    low, high = found["interval"]
    return (
        f"95 % in [{low:+.4f}, {high:+.4f}], p = {found['p_holm']:.4f}, in {found['seeds_above']}"
        f" of {found['seeds']} seeds"
    )


def verdict(found: Mapping[str, Any]) -> str:
    """Whether a difference that was expected above zero is, and how sure that is."""
    if not found["difference"]:
        return "equal"
    words = "holds" if found["difference"] > 0 else "is reversed"
    if found["p_holm"] >= SURE:
        return f"{words}, but may be luck"
    if found["seeds"] == 1:
        return f"{words} on these questions; other seeds unknown"
    return words if found["sure"] else f"{words} on these questions, but not with every seed"


def order(claims: Sequence[Mapping[str, Any]]) -> str:
    """How much of the paper's order is sure, and whether it holds, in a sentence."""
    held = sum(claim["holds"] for claim in claims)
    sure = sum(claim["sure"] and claim["holds"] for claim in claims)
    against_it = sum(claim["sure"] and not claim["holds"] for claim in claims)
    seeds = claims[0]["seeds"]
    means = (
        f"p < {SURE:g} by Holm's correction, and all {seeds} seeds agree"
        if seeds > 1
        else "one seed makes none sure"
    )
    if held < len(claims):
        words = "does not hold as a whole"
    else:
        words = "holds" if sure == held else "has the right signs, and not all of it is sure"
    return (
        f"The paper's order: {sure} of {len(claims)} differences are sure ({means}),"
        f" {against_it} are surely reversed. {held} of {len(claims)} have its sign: it {words}."
    )


def _short(value: Any) -> float:
    return round(float(value), 6)
