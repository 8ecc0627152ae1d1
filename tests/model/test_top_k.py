"""Exact top-k: equal to sorting everything, ties included. Embeddings are small integers, so that
scores are exact and ties many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketray.model.top_k import in_order, top_k


def blocks_of(p_PD: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(p_PD), size):
        yield first, p_PD[first : first + size]


def slow(q_QD: np.ndarray, p_PD: np.ndarray, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """Sort every (score, row) pair by Python's own sort."""
    scores, rows = [], []
    for q_D in q_QD:
        pairs = sorted((-float(q_D @ p_D), row) for row, p_D in enumerate(p_PD))[:k]
        scores.append([-score for score, _ in pairs])
        rows.append([row for _, row in pairs])
    return scores, rows


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 40), st.integers(1, 50))
def test_equal_to_sorting_everything(seed: int, size: int, passages: int, k: int) -> None:
    random = np.random.default_rng(seed)
    q_QD = random.integers(-1, 2, (3, 2)).astype(np.float32)
    p_PD = random.integers(-1, 2, (passages, 2)).astype(np.float32)
    scores, rows = top_k(q_QD, blocks_of(p_PD, size), k)
    assert (scores.tolist(), rows.tolist()) == slow(q_QD, p_PD, k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert rows.shape == (3, min(k, passages))


def test_of_equals_across_block_borders_the_lower_rows_win() -> None:
    q_QD = np.ones((1, 1), np.float32)
    p_PD = np.array([[1], [2], [1], [2], [2], [1], [2], [1]], np.float32)
    for size in range(1, 9):
        scores, rows = top_k(q_QD, blocks_of(p_PD, size), 6)
        assert rows.tolist() == [[1, 3, 4, 6, 0, 2]]
        assert scores.tolist() == [[2, 2, 2, 2, 1, 1]]


def test_all_equal() -> None:
    _, rows = top_k(np.ones((2, 4), np.float32), blocks_of(np.ones((9, 4), np.float32), 2), 3)
    assert rows.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_row_numbers_start_where_the_first_block_does() -> None:
    p_PD = np.array([[1], [3], [2]], np.float32)
    _, rows = top_k(np.ones((1, 1), np.float32), [(100, p_PD)], 2)
    assert rows.tolist() == [[101, 102]]


def test_a_corpus_smaller_than_k_gives_short_lists() -> None:
    scores, rows = top_k(np.ones((2, 1), np.float32), [(0, np.ones((3, 1), np.float32))], 10)
    assert rows.shape == scores.shape == (2, 3)


def test_no_queries() -> None:
    scores, rows = top_k(np.empty((0, 2), np.float32), [(0, np.ones((3, 2), np.float32))], 2)
    assert rows.shape == scores.shape == (0, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_scored_in_float32(dtype: type) -> None:
    scores, rows = top_k(np.full((1, 1), 2, np.float32), [(0, np.array([[1], [3]], dtype))], 2)
    assert (scores.tolist(), rows.tolist()) == ([[6, 2]], [[1, 0]])
    assert scores.dtype == np.float32


def test_in_order() -> None:
    scores = np.array([[1.0, 2.0, 2.0, -np.inf], [0.0, -0.0, 5.0, 5.0]])
    rows = np.array([[9, 8, 7, 1], [4, 3, 2, 1]])
    best_scores, best_rows = in_order(scores, rows, 3)
    assert best_rows.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert best_scores.tolist() == [[2, 2, 1], [5, 5, 0]]
