"""What flows: columns, positives, counts of verdicts, seeded samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketray.schema import (
    VERDICTS,
    Verdict,
    count,
    positives_of,
    require,
    sample,
    text_hashes,
    with_verdicts,
)
from tests.versions import qrels, scored


def test_a_missing_column_is_named() -> None:
    table = pa.table({"query": [1], "score": [2]})
    require(table, ["score", "query"], "rerank")
    with pytest.raises(ValueError, match=r"rerank needs columns \['x'\]; the table has \['query'"):
        require(table, ["query", "x"], "rerank")


def test_positives_are_what_has_relevance_above_zero() -> None:
    table = qrels((3, 9, 1), (1, 5, 0), (1, 4, 2), (3, 2, 1), (2, 7, -1))
    assert positives_of(table) == {3: [9, 2], 1: [4]}
    assert positives_of(qrels()) == {}


def test_verdicts_are_appended_to_the_scored_run() -> None:
    table = scored((0, [1, 2], [0.5, 0.1]), (1, [], []))
    rows = [[Verdict.UNCERTAIN, Verdict.HARD_NEGATIVE], []]
    judged = with_verdicts(table, rows)
    assert judged.schema == VERDICTS
    assert judged["verdicts"].to_pylist() == [["uncertain", "hard_negative"], []]
    assert count(rows) == {
        "labelled_positive": 0,
        "hard_negative": 1,
        "likely_false_negative": 0,
        "uncertain": 1,
        "near_positive": 0,
        "pseudo_positive": 0,
    }


def test_a_small_enough_table_is_taken_whole_and_sorted() -> None:
    assert sample(np.array([5, 1, 3]), 3, seed=0).tolist() == [1, 3, 5]
    assert sample(np.array([5, 1, 3]), None, seed=0).tolist() == [1, 3, 5]


def test_another_seed_draws_others() -> None:
    rows = np.arange(1000)
    assert sample(rows, 100, seed=1).tolist() != sample(rows, 100, seed=2).tolist()


@given(st.sets(st.integers(0, 10_000)), st.integers(0, 50), st.integers(0, 100))
def test_samples(rows: set[int], limit: int, seed: int) -> None:
    found = sample(np.array(sorted(rows), np.int64), limit, seed).tolist()
    assert found == sorted(set(found))
    assert set(found) <= rows
    assert len(found) == min(limit, len(rows))


@given(st.sets(st.integers(0, 1000), min_size=1), st.integers(0, 20), st.integers(0, 5))
def test_a_larger_sample_holds_the_smaller(rows: set[int], limit: int, seed: int) -> None:
    every = np.array(sorted(rows))
    assert set(sample(every, limit, seed)) <= set(sample(every, limit + 3, seed))


@given(st.sets(st.integers(0, 1000), min_size=20, max_size=50), st.integers(0, 5))
def test_more_rows_never_draw_one_that_had_lost(rows: set[int], seed: int) -> None:
    every = np.array(sorted(rows))
    before = set(sample(every, 5, seed))
    after = set(sample(np.append(every, np.arange(1001, 1030)), 5, seed))
    assert after & rows <= before


def test_hashes_are_what_b2sum_says() -> None:
    expected = bytes.fromhex("e4a6a0577479b2b45777a2bd3192d7e3")  # b2sum -l 64
    assert text_hashes(["", "caf\u00e9"]).astype("<u8").tobytes() == expected
    assert text_hashes([]).shape == (0,)
