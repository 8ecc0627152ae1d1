"""Counters over lists small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from rocketray.calibration import keys
from rocketray.sweeps import (
    ByRank,
    BySource,
    Pseudo,
    Removal,
    Row,
    Sweep,
    best,
    flat,
    names_of_bands,
    ratio,
    sources_of,
)
from tests.versions import scored, verdicts

POSITIVE, HARD, FALSE, UNSURE, NEAR = (
    "labelled_positive",
    "hard_negative",
    "likely_false_negative",
    "uncertain",
    "near_positive",
)
# 0.25, 0.5 and 0.75 are exact in float32: what is equal to a threshold is equal.
LISTS = verdicts(
    (3, [10, 11, 12, 13, 14], [0.75, 0.25, 0.5, 0.0, 0.125],
     [POSITIVE, UNSURE, FALSE, HARD, HARD]),
    (5, [11, 10], [0.125, 1.0], [HARD, POSITIVE]),
    (6, [10], [0.5], [POSITIVE]),
)  # fmt: skip
GRID = np.array([0.25, 0.5])


def pairs(*found: tuple[int, int]) -> np.ndarray:
    queries, passages = (np.array(column, np.int64) for column in zip(*found, strict=True))
    return keys(queries, passages)


def by(rows: list[Row], column: str) -> list[object]:
    return [row[column] for row in rows]


def test_a_block_laid_flat() -> None:
    found = flat(LISTS)
    assert found.list_N.tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert found.query_N.tolist() == [3, 3, 3, 3, 3, 5, 5, 6]
    assert found.rank_N.tolist() == [1, 2, 3, 4, 5, 1, 2, 1]
    assert found.band_N.tolist() == [0, 1, 2, 3, 3, 0, 1, 0]
    assert found.having(HARD).tolist() == [False, False, False, True, True, True, False, False]
    assert set(flat(scored((1, [2], [0.5]), (2, [], []))).verdict_N) == {-1}


def test_bands_of_ranks() -> None:
    assert names_of_bands(np.arange(11)) == [
        "1", "2", "3", "4-5", "6-10", "11-20", "21-50", "51-100", "101-200", "201-500", "501-",
    ]  # fmt: skip


def test_a_share_of_nothing_is_none() -> None:
    assert (ratio(1, 4), ratio(0, 0), ratio(math.nan, 2)) == (0.25, None, None)


def ranked() -> ByRank:
    """Probabilities are twice the ce_score; passage 13 of question 3 is known to be relevant."""
    ranks, found = ByRank(), flat(LISTS)
    ranks.add(found, 2 * found.ce_N, np.isin(found.key_N, pairs((3, 13))))
    return ranks


def test_verdicts_by_rank() -> None:
    rows = ranked().rows()
    assert by(rows, "ranks") == ["1", "2", "3", "4-5", "all"]
    assert by(rows, "passages") == [3, 2, 1, 2, 8]
    assert by(rows, POSITIVE) == [2, 1, 0, 0, 3]
    assert by(rows, HARD) == [1, 0, 0, 2, 3]
    assert by(rows, FALSE) == [0, 0, 1, 0, 1]
    assert by(rows, UNSURE) == [0, 1, 0, 0, 1]


def test_false_negatives_before_and_after() -> None:
    """All unlabelled: 0.125 | 0.25 | 0.5 | 0, 0.125, doubled. Kept: 0.125 | - | - | 0, 0.125."""
    rows = ranked().rows()
    assert by(rows, "false_before") == [0.25, 0.5, 1.0, 0.125, 0.4]
    assert by(rows, "false_after") == [0.25, None, None, 0.125, pytest.approx(1 / 6, abs=1e-6)]
    assert by(rows, "ce_before") == [0.125, 0.25, 0.5, 0.0625, 0.2]
    assert by(rows, "known_false_before") == [0, 0, 0, 1, 1]
    assert by(rows, "known_false_after") == [0, 0, 0, 1, 1]


def test_histograms_by_verdict_and_by_rank() -> None:
    """Bins of 0.05, open above; 1.0 falls into the last."""
    found = ranked().histograms()
    filled = {
        verdict: {n: count for n, count in enumerate(counts) if count}
        for verdict, counts in found["by_verdict"].items()
    }
    assert filled == {
        POSITIVE: {10: 1, 15: 1, 19: 1}, HARD: {0: 1, 2: 2}, FALSE: {10: 1}, UNSURE: {5: 1},
        NEAR: {},
    }  # fmt: skip
    by_rank = {
        row["ranks"]: {
            verdict: sum(counts) for verdict, counts in row["counts"].items() if any(counts)
        }
        for row in found["by_rank"]
    }
    assert by_rank == {
        "1": {POSITIVE: 2, HARD: 1},
        "2": {POSITIVE: 1, UNSURE: 1},
        "3": {FALSE: 1},
        "4-5": {HARD: 2},
    }
    assert found["by_rank"][2]["counts"][FALSE][10] == 1


def test_what_a_filter_removed_is_no_negative() -> None:
    counted = ByRank()
    found = flat(verdicts((3, [10, 11, 12], [0.75, 0.0, 0.0], [POSITIVE, NEAR, HARD])))
    counted.add(found, found.ce_N, np.zeros(3, bool))
    *_, row = counted.rows()
    assert (row[NEAR], row[HARD], row["passages"]) == (1, 1, 3)
    assert (row["ce_before"], row["ce_after"]) == (0.0, 0.0)


def test_verdicts_by_who_found_a_candidate() -> None:
    """A pool may list more than was judged, and nothing of a question that was left out."""
    found, sources = flat(LISTS), BySource()
    who = [["both", "bm25", "dual_0", "bm25", "bm25", "dual_0"], ["bm25", "dual_0"], ["both"]]
    place_N = sources_of(pa.table({"found_by": who}), found)
    assert place_N.tolist() == [2, 1, 0, 1, 1, 1, 0, 2]
    sources.add(found, 2 * found.ce_N, np.isin(found.key_N, pairs((3, 13))), place_N)
    rows = sources.rows()
    assert by(rows, "found_by") == ["dual_0", "bm25", "both", "all"]
    assert by(rows, "passages") == [2, 4, 2, 8]
    assert by(rows, POSITIVE) == [1, 0, 2, 3]
    assert by(rows, HARD) == [0, 3, 0, 3]
    assert by(rows, FALSE) == [1, 0, 0, 1]
    assert by(rows, UNSURE) == [0, 1, 0, 1]
    assert by(rows, "false_before") == [1.0, 0.25, None, 0.4]
    assert by(rows, "known_false_before") == [0, 1, 0, 1]
    left_out = flat(verdicts((1, [], [], []), (2, [7], [0.5], [HARD])))
    assert sources_of(pa.table({"found_by": [["bm25"], ["both"]]}), left_out).tolist() == [2]


def test_blocks_add_up_to_the_whole() -> None:
    parts = ByRank()
    for row in range(len(LISTS)):
        found = flat(LISTS.slice(row, 1))
        parts.add(found, 2 * found.ce_N, np.isin(found.key_N, pairs((3, 13))))
    assert parts.rows() == ranked().rows()
    assert parts.histograms() == ranked().histograms()


def test_without_scores_there_are_verdicts_only() -> None:
    """denoise.off."""
    ranks, nan = ByRank(), math.nan
    found = flat(verdicts((0, [1, 2], [nan, nan], [POSITIVE, HARD])))
    ranks.add(found, found.ce_N, np.array([False, True]))
    row = ranks.rows()[-1]
    assert (row["passages"], row["false_before"], row["known_false_after"]) == (2, None, 1)
    assert ranks.steps_VRS.sum() == 0


def test_what_is_promoted_counts_as_a_false_negative() -> None:
    ranks = ByRank()
    found = flat(verdicts((0, [1, 2], [1.0, 0.0], ["pseudo_positive", HARD])))
    ranks.add(found, found.ce_N, np.array([False, False]))
    assert by(ranks.rows(), FALSE) == [1, 0, 1]
    assert ranks.histograms()["by_verdict"][FALSE][-1] == 1


def swept() -> Sweep:
    sweep, found = Sweep(GRID), flat(LISTS)
    sweep.add(found, found.ce_N)
    return sweep


def test_negatives_under_each_threshold() -> None:
    """Unlabelled: 0, 0.125, 0.25, 0.5 of question 3, 0.125 of question 5; question 6 has none."""
    rows = swept().negatives()
    assert by(rows, "negative_below") == [0.25, 0.5]
    assert by(rows, "negatives") == [3, 4]
    assert by(rows, "per_question") == [1.0, pytest.approx(4 / 3, abs=1e-6)]
    assert by(rows, "questions_without") == [1, 1]
    assert by(rows, "estimated_false") == [pytest.approx(0.25 / 3, abs=1e-6), 0.125]


def test_a_question_whose_lowest_score_is_too_high_is_left_without() -> None:
    sweep = Sweep(np.array([0.125, 0.25]))
    found = flat(LISTS)
    sweep.add(found, found.ce_N)
    assert by(sweep.negatives(), "questions_without") == [2, 1]


def test_likely_positives_over_each_threshold() -> None:
    """0.5 is not over 0.5."""
    rows = swept().positives()
    assert by(rows, "passages") == [1, 0]
    assert by(rows, "estimated_precision") == [0.5, None]


def test_removal_by_hand() -> None:
    """Known: 11 at rank 2 (0.25), 13 at rank 4 (0). Others at their bands: 14 at rank 5 (0.125);
    12 at rank 3 is of a band without a known one. 10 is labelled; question 5 has no known one."""
    removal = Removal(GRID, pairs((3, 11), (3, 13), (9, 1)), pairs((3, 10), (5, 10)))
    removal.add(flat(LISTS))
    found = removal.found()
    assert (found["known"], found["scored"], found["others"]) == (2, 2, 2)  # 9 has no list.
    assert found["curve"] == [
        {"negative_below": 0.25, "recall": 0.5, "kept": 1.0, "precision": 0.5},
        {"negative_below": 0.5, "recall": 0.0, "kept": 1.0, "precision": 0.0},
    ]
    assert found["best"] == found["curve"][0]


def test_kept_weighs_ranks_by_their_known_ones() -> None:
    """Rank 1 has one known and one other, which is removed; rank 2 three known and one kept."""
    table = scored(
        *((q, [10 + q, 20 + q], [0.9, 0.9]) for q in range(3)), (3, [13, 23], [0.9, 0.0])
    )
    truth = pairs((0, 20), (1, 21), (2, 22), (3, 13))
    removal = Removal(GRID, truth, keys(np.array([1, 2]), np.array([11, 12])))
    removal.add(flat(table))
    assert removal.rows()[0]["kept"] == 0.75
    assert removal.rows()[0]["recall"] == 1.0
    assert removal.rows()[0]["precision"] == 0.8


def test_the_best_threshold_is_the_lowest_of_equals() -> None:
    rows: list[Row] = [
        {"recall": 0.5, "kept": 0.5}, {"recall": 1.0, "kept": 0.25}, {"recall": 0.25, "kept": 1.0},
        {"recall": 1.0, "kept": None},
    ]  # fmt: skip
    assert best(rows) is rows[1]
    assert best([rows[3]]) is None


def test_pseudo_labels_by_hand() -> None:
    """Best: 0.75 of question 0 (right), 0.5 of 1 (wrong; of equals the better ranked), 0.5 of 2
    (nothing known), none of 3."""
    table = scored((0, [1, 2], [0.25, 0.75]), (1, [3, 4], [0.5, 0.5]), (2, [5], [0.5]), (3, [], []))
    pseudo = Pseudo(GRID, pairs((0, 2), (1, 4), (8, 8)))
    found = flat(table)
    pseudo.add(found, 1 - found.ce_N)
    low, high = pseudo.rows()
    assert low == {
        "positive_above": 0.25, "questions": 3, "share": 1.0,
        "estimated_precision": pytest.approx(1.25 / 3, abs=1e-6),
        "known": 2, "agreement": 0.5, "recall": 0.5,
    }  # fmt: skip
    assert (high["questions"], high["known"], high["agreement"]) == (1, 1, 1.0)
