"""Pseudo labels: at most one positive a query, and only a confident one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rocketray.stages.augment import Augment
from tests.versions import scored, version

LOW, HIGH = 0.25, 0.75
ABOVE = float(np.nextafter(np.float32(HIGH), np.float32(1)))
BELOW = float(np.nextafter(np.float32(LOW), np.float32(0)))
PSEUDO, FALSE, UNSURE, HARD = (
    "pseudo_positive",
    "likely_false_negative",
    "uncertain",
    "hard_negative",
)


@pytest.mark.parametrize(
    ("ce_scores", "verdicts"),
    [
        ([0.5, 0.9, 0.8, 0.1], [UNSURE, PSEUDO, FALSE, HARD]),
        ([0.8, 0.9, 0.9], [FALSE, PSEUDO, FALSE]),
        ([HIGH, 0.5, 0.1], [UNSURE, UNSURE, HARD]),
        ([ABOVE], [PSEUDO]),
        ([BELOW, LOW], [HARD, UNSURE]),
        ([0.1, 0.2], [HARD, HARD]),
        ([], []),
    ],
    ids=["best", "tie", "at the threshold", "above", "below", "no positive", "no passage"],
)
def test_verdicts(tmp_path: Path, ce_scores: list[float], verdicts: list[str]) -> None:
    table = scored((4, list(range(len(ce_scores))), ce_scores))
    path = version(tmp_path / "scored", table)
    made = Augment(scored=path, negative_below=LOW, positive_above=HIGH)(0)
    assert made.parts["table"]["verdicts"].to_pylist() == [verdicts]
    assert made.facts == {
        "labelled_positive": 0,
        "hard_negative": verdicts.count(HARD),
        "likely_false_negative": verdicts.count(FALSE),
        "uncertain": verdicts.count(UNSURE),
        "near_positive": 0,
        "pseudo_positive": verdicts.count(PSEUDO),
    }
