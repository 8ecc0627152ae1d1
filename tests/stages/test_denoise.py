"""Verdicts on labelled queries: 0.25 and 0.75 are exact in float32, so equality means equality."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rocketray.artifacts import Made
from rocketray.schema import RUN, SCORED, VERDICTS
from rocketray.stages.denoise import Denoise, Limit, TrustAll
from tests.versions import qrels, run, scored, table, version

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
        "near_positive": 0,
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


# ----------------------------------------------------------------------------- beyond the paper


@pytest.mark.parametrize(
    ("limit", "positives", "expected"),
    [
        (Limit(), [2.0], math.inf),
        (Limit(percpos=0.5), [2.0], 1.0),
        (Limit(marginpos=0.25), [2.0], 1.75),
        (Limit(percpos=0.5, marginpos=0.25), [2.0], 1.0),  # The stricter one counts.
        (Limit(percpos=0.5), [4.0, 2.0], 1.0),  # So does the lower positive.
        (Limit(percpos=0.75), [-2.0], -2.5),  # Half of a negative number would lie above it.
        (Limit(percpos=0.5), [], -math.inf),  # Not in the list: no higher than any that is.
        (Limit(percpos=0.5, by="ce_score"), [], math.inf),  # Not scored: not known.
    ],
)
def test_limits_by_hand(limit: Limit, positives: list[float], expected: float) -> None:
    assert limit.of(positives) == expected


def judged(folder: Path, scores: list[float], ce: list[float], **rules: Any) -> list[str]:
    """Verdicts on passages 5, 1 and 6 of query 0; passage 1 is labelled."""
    stage = Denoise(
        scored=version(folder / "scored", table(SCORED, (0, [5, 1, 6], scores, ce))),
        positives=version(folder / "qrels", qrels((0, 1, 1))),
        negative_below=LOW,
        positive_above=HIGH,
        **rules,
    )
    found: list[list[str]] = stage(0).parts["table"]["verdicts"].to_pylist()
    return found[0]


def test_a_filter_by_score_removes_what_is_too_near_the_positive(tmp_path: Path) -> None:
    found = judged(tmp_path, [1.0, 0.75, 0.5], [0.0, 1.0, 0.0], filter={"percpos": 1.0})
    assert found == ["near_positive", "labelled_positive", "hard_negative"]
    found = judged(tmp_path / "b", [1.0, 0.75, 0.5], [0.0, 1.0, 0.0], filter={"marginpos": 0.25})
    assert found[2] == "near_positive"  # Equal to the limit is not under it.


def test_a_filter_by_ce_score_reads_the_positives_own(tmp_path: Path) -> None:
    rules = {"filter": {"percpos": 0.5, "by": "ce_score"}}
    found = judged(tmp_path, [3.0, 2.0, 1.0], [0.125, 0.25, 0.0625], **rules)
    assert found == ["near_positive", "labelled_positive", "hard_negative"]


def test_a_filter_asks_beside_the_threshold_and_not_instead_of_it(tmp_path: Path) -> None:
    """What a threshold removes has that for its reason, also where the filter would remove it."""
    found = judged(tmp_path, [0.5, 1.0, 0.25], [0.5, 1.0, 1.0], filter={"percpos": 0.95})
    assert found == ["uncertain", "labelled_positive", "likely_false_negative"]
    found = judged(tmp_path / "b", [0.99, 1.0, 0.98], [0.5, 1.0, 1.0], filter={"percpos": 0.95})
    assert found == ["uncertain", "labelled_positive", "likely_false_negative"]


def test_promoted_are_those_that_would_be_likely_false_negatives(tmp_path: Path) -> None:
    found = judged(tmp_path, [3.0, 2.0, 1.0], [1.0, 1.0, 0.5], promote=True)
    assert found == ["pseudo_positive", "labelled_positive", "uncertain"]


def test_what_a_person_has_judged_irrelevant_is_not_promoted(tmp_path: Path) -> None:
    """Passage 2 of question 0 is judged 0, of question 7 not at all."""
    stage = Denoise(
        scored=version(tmp_path / "scored", scored((0, [2, 5], [1.0, 1.0]), (7, [2], [1.0]))),
        positives=version(tmp_path / "qrels", qrels((0, 1, 1), (0, 2, 0), (7, 3, 1))),
        negative_below=LOW, positive_above=HIGH, promote=True,
    )  # fmt: skip
    found = stage(0).parts["table"]["verdicts"].to_pylist()
    assert found == [["likely_false_negative", "pseudo_positive"], ["pseudo_positive"]]


def test_without_denoising_a_filter_by_score_is_all_that_is_asked(tmp_path: Path) -> None:
    rows = ((0, [5, 1, 6], [1.0, 0.75, 0.5]), (7, [5], [1.0]))
    stage = TrustAll(
        run=version(tmp_path / "run", table(RUN, *rows)),
        positives=version(tmp_path / "qrels", qrels((0, 1, 1), (7, 9, 1))),
        depth=3,
        filter={"percpos": 0.95},
    )
    assert stage(0).parts["table"]["verdicts"].to_pylist() == [
        ["near_positive", "labelled_positive", "hard_negative"],
        ["near_positive"],  # Its positive is not in the list, and so no better than this.
    ]
