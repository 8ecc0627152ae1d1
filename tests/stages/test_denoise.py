"""Verdicts on labelled queries: 0.25 and 0.75 are exact in float32, so equality means equality."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rocketray.artifacts import Made
from rocketray.schema import VERDICTS
from rocketray.stages.denoise import Denoise, TrustAll
from tests.versions import qrels, run, scored, version

LOW, HIGH = 0.25, 0.75


def denoised(folder: Path, *rows: tuple[int, list[int], list[float]]) -> Made:
    stage = Denoise(
        scored=version(folder / "scored", scored(*rows)),
        positives=version(folder / "qrels", qrels((0, 1, 2), (0, 2, 0), (7, 3, 1))),
        negative_below=LOW,
        positive_above=HIGH,
    )
    return stage(0)


@pytest.mark.parametrize(
    ("ce_score", "verdict"),
    [
        (0.0, "hard_negative"),
        (np.nextafter(np.float32(LOW), np.float32(0)), "hard_negative"),
        (LOW, "uncertain"),
        (0.5, "uncertain"),
        (HIGH, "uncertain"),
        (np.nextafter(np.float32(HIGH), np.float32(1)), "likely_false_negative"),
        (1.0, "likely_false_negative"),
    ],
)
def test_equal_to_a_threshold_is_not_confident(
    tmp_path: Path, ce_score: float, verdict: str
) -> None:
    made = denoised(tmp_path, (0, [5], [ce_score]))
    assert made.parts["table"]["verdicts"].to_pylist() == [[verdict]]


def test_a_label_is_worth_more_than_a_score(tmp_path: Path) -> None:
    """Relevance 0 is no label; another query's label is none either."""
    made = denoised(tmp_path, (0, [1, 2, 3], [0.0, 0.0, 1.0]), (7, [1, 3], [1.0, 0.5]))
    assert made.parts["table"]["verdicts"].to_pylist() == [
        ["labelled_positive", "hard_negative", "likely_false_negative"],
        ["likely_false_negative", "labelled_positive"],
    ]


def test_every_passage_keeps_its_row_and_scores(tmp_path: Path) -> None:
    made = denoised(tmp_path, (0, [4, 1], [0.5, 0.0]), (7, [], []))
    table = made.parts["table"]
    assert table.schema == VERDICTS
    assert table["passages"].to_pylist() == [[4, 1], []]
    assert table["ce_scores"].to_pylist() == [[0.5, 0.0], []]
    assert made.rows == 2


def test_facts_count_every_verdict(tmp_path: Path) -> None:
    made = denoised(tmp_path, (0, [1, 2, 3, 4], [0.0, 0.1, 0.2, 0.9]))
    assert made.facts == {
        "labelled_positive": 1,
        "hard_negative": 2,
        "likely_false_negative": 1,
        "uncertain": 0,
        "pseudo_positive": 0,
    }


def test_without_denoising_whatever_has_no_label_is_a_negative(tmp_path: Path) -> None:
    stage = TrustAll(
        run=version(tmp_path / "run", run((0, [1, 2, 3, 4]), (7, [5]))),
        positives=version(tmp_path / "qrels", qrels((0, 2, 1))),
        depth=3,
    )
    made = stage(0)
    table = made.parts["table"]
    assert table.schema == VERDICTS
    assert table["passages"].to_pylist() == [[1, 2, 3], [5]]
    assert table["verdicts"].to_pylist() == [
        ["hard_negative", "labelled_positive", "hard_negative"],
        ["hard_negative"],
    ]
    assert all(math.isnan(ce) for row in table["ce_scores"].to_pylist() for ce in row)
    assert made.facts["hard_negative"] == 3
