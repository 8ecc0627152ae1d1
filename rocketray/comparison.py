"""Rows of an ablation beside each other: means, spreads, differences, and the paper's order.

A row has one measured frame per seed, over the same questions. Its mean is over questions and
seeds, its spread the standard deviation over seeds (training luck). Two rows are compared question
by question, each question's value averaged over seeds first, so the p-value speaks of the questions
and not of the seeds; how many seeds agree in sign stands beside it. Questions about one passage
count as one witness (`Measured.groups`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rocketray import measures

MEASURE = "mrr@10"
"""What the paper's tables 3 and 6 hold, on MS MARCO."""
SURE = 0.05
"""A p-value below this is called more than luck."""

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
        """A fact's mean over seeds; None where nothing was trained."""
        found = [facts[fact] for facts in self.facts if fact in facts]
        return round(float(np.mean(found)), 1) if found else None


def table_order(in_batch: str) -> list[str]:
    """Rows of the table; `in_batch` is the name of its row, which says the group's size."""
    return ["bm25", "initial", in_batch, "dual_0", "undenoised", "dual_1", "dual_2", "reranked"]


def compared(
    rows: Mapping[str, Measured], in_batch: str, kinds: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Everything that ablation.json says of rows.

    Args:
        in_batch: the in-batch row's name.
        kinds: further rows: `also` (against dual_1), `weights` (against dual_0), and the points of
            the figures `negatives` and `augmented`.
    """
    table = [rows[name] for name in table_order(in_batch) if name in rows]
    above = [None, *table[:-1]]
    paper = {**PAPER, in_batch: PAPER["in_batch"]}
    claims = [
        claim(rows[better], rows[worse], paper[better] - paper[worse])
        for better, worse in ((_named(a, in_batch), _named(b, in_batch)) for a, b in ORDER)
        if better in rows and worse in rows
    ]
    found: dict[str, Any] = {
        "measure": MEASURE,
        "questions": len(table[0].frames[0]),
        "rows": [
            line(row, other, paper.get(row.name)) for row, other in zip(table, above, strict=True)
        ],
        "claims": claims,
        "order": order(claims),
    }
    if "also_longer" in rows and "dual_2" in rows:
        found["augmentation"] = against(rows["dual_2"], rows["also_longer"])
    for kind, base in (("also", "dual_1"), ("weights", "dual_0")):
        if kind in kinds:
            found[kind] = [line(rows[name], rows[base]) for name in kinds[kind]]
    for kind, fact in (("negatives", "negatives_per_query"), ("augmented", "rows")):
        if kind in kinds:
            found[kind] = [point(rows[name], fact) for name in kinds[kind] if name in rows]
    return found


def _named(row: str, in_batch: str) -> str:
    return in_batch if row == "in_batch" else row


def line(row: Measured, other: Measured | None, paper: float | None = None) -> dict[str, Any]:
    """One row as ablation.json has it; `against` another where there is one."""
    return {
        "row": row.name,
        "words": row.words,
        "mean": _short(np.mean(row.by_seed())),
        "spread": spread(row.by_seed()),
        "by_seed": [_short(value) for value in row.by_seed()],
        "measures": {name: _short(np.mean(row.by_seed(name))) for name in row.frames[0].columns},
        "against": against(row, other) if other else None,
        "paper": paper,
        "steps": row.counted("steps"),
        "examples": row.counted("rows"),
        "negatives": row.counted("negatives_per_query"),
    }


def point(row: Measured, fact: str) -> dict[str, Any]:
    """One point of a figure: a count and the measure."""
    values = row.by_seed()
    return {"row": row.name, "x": row.counted(fact), "mean": _short(np.mean(values)),
            "spread": spread(values)}  # fmt: skip


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n - 1); None of a single one."""
    return _short(np.std(values, ddof=1)) if len(values) > 1 else None


def against(row: Measured, other: Measured) -> dict[str, Any]:
    """Difference, p-value (paired, two-sided, over questions), seeds with a gain."""
    found = measures.compare(row.by_question(), other.by_question(), groups=row.groups)
    pairs = zip(row.by_seed(), other.by_seed(), strict=True)
    return {
        "row": other.name,
        "difference": _short(found.difference),
        "p": _short(found.p_value),
        "seeds_above": sum(a > b for a, b in pairs),
    }


def claim(better: Measured, worse: Measured, paper: float) -> dict[str, Any]:
    """Whether one of the paper's differences is there."""
    found = against(better, worse)
    difference, p, seeds = found["difference"], found["p"], len(better.frames)
    sure = p < SURE
    verdict = "equal" if not difference else "holds" if difference > 0 else "is reversed"
    words = verdict if sure or not difference else f"{verdict}, but may be luck"
    return {
        "better": better.name,
        "worse": worse.name,
        "difference": difference,
        "p": p,
        "seeds_above": found["seeds_above"],
        "paper": _short(paper),
        "holds": difference > 0,
        "sure": sure,
        "words": f"{better.name} above {worse.name}: {difference:+.4f} (paper {paper:+.4f}),"
        f" p = {p:.4f}, in {found['seeds_above']} of {seeds} seeds: {words}.",
    }


def order(claims: Sequence[Mapping[str, Any]]) -> str:
    """Whether the paper's order holds, in a sentence."""
    held = [c for c in claims if c["holds"]]
    sure = sum(c["sure"] for c in held)
    against_it = sum(c["sure"] and not c["holds"] for c in claims)
    words = "holds" if len(held) == len(claims) else "does not hold as a whole"
    return (
        f"The paper's order {words}: {len(held)} of {len(claims)} differences have its sign,"
        f" {sure} of them with p < {SURE:g}; {against_it} are reversed with p < {SURE:g}."
    )


def _short(value: Any) -> float:
    return round(float(value), 6)
