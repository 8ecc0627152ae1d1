"""Exact top-k: equal to scoring without error and sorting everything, ties included."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rocketray.model.threads import set_threads
from rocketray.model.top_k import CPU, GPU, Tiling, best, in_order, scores_of, top_k

SMALL = replace(CPU, queries=3, passages=64, pairs=5)
"""Many tiles, chunks and chunks of pairs in little data."""
HALF = replace(SMALL, device="cpu", dtype=torch.float16)
"""What a GPU does, on the CPU."""


def blocks_of(p_PD: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(p_PD), size):
        yield first, p_PD[first : first + size]


def slow(q_QD: np.ndarray, p_PD: np.ndarray, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """Every score summed without error, every list sorted by Python."""
    q_QD, p_PD = q_QD.astype(np.float64), p_PD.astype(np.float64)
    scores, rows = [], []
    for q_D in q_QD:
        exact = [float(np.float32(math.fsum((q_D * p_D).tolist()))) for p_D in p_PD]
        pairs = sorted((-score, row) for row, score in enumerate(exact) if not math.isnan(score))
        scores.append([-score for score, _ in pairs[:k]])
        rows.append([row for _, row in pairs[:k]])
    return scores, rows


def same(found: tuple[np.ndarray, np.ndarray], q_QD: np.ndarray, p_PD: np.ndarray, k: int) -> bool:
    assert (found[0].dtype, found[1].dtype) == (np.float32, np.int64)
    return (found[0].tolist(), found[1].tolist()) == slow(q_QD, p_PD, k)


def data(kind: str, passages: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Seven queries and some passages of five dimensions."""
    random = np.random.default_rng(seed)
    q_QD = random.standard_normal((7, 5)).astype(np.float32)
    p_PD = random.standard_normal((passages, 5)).astype(np.float32)
    if kind == "equal":
        p_PD[:] = p_PD[0]
    elif kind == "copies":
        p_PD = p_PD[random.integers(0, 4, passages)]
    elif kind == "nearly equal":  # Apart by less than a float32 product can err.
        p_PD = (p_PD[0] + 1e-7 * p_PD).astype(np.float32)
    elif kind == "rising":  # Each better than all before it, for half of the queries.
        p_PD = p_PD[0] * np.arange(1, passages + 1, dtype=np.float32)[:, None]
    elif kind == "lengths":
        p_PD *= 10.0 ** random.integers(-4, 5, (passages, 1)).astype(np.float32)
    elif kind == "long":  # Beyond float16.
        q_QD, p_PD = q_QD * np.float32(1e4), p_PD * np.float32(1e6)
    elif kind == "short":
        q_QD, p_PD = q_QD * np.float32(1e-6), p_PD * np.float32(1e-7)
    elif kind == "zeros":
        q_QD[::2], p_PD[::3] = 0, 0
    return q_QD, p_PD


KINDS = ("random", "equal", "copies", "nearly equal", "rising", "lengths", "long", "short", "zeros")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiling", [SMALL, HALF, replace(HALF, dtype=torch.bfloat16), CPU])
@pytest.mark.parametrize("k", [1, 6, 300])
def test_equal_to_sorting_everything(kind: str, tiling: Tiling, k: int) -> None:
    q_QD, p_PD = data(kind, 200)
    assert same(top_k(q_QD, blocks_of(p_PD, 67), k, tiling), q_QD, p_PD, k)


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 40), st.integers(1, 50))
def test_small_integers_are_full_of_ties(seed: int, size: int, passages: int, k: int) -> None:
    random = np.random.default_rng(seed)
    q_QD = random.integers(-1, 2, (3, 2)).astype(np.float32)
    p_PD = random.integers(-1, 2, (passages, 2)).astype(np.float32)
    found = top_k(q_QD, blocks_of(p_PD, size), k, SMALL)
    assert same(found, q_QD, p_PD, k)
    assert found[1].shape == (3, min(k, passages))


@pytest.mark.parametrize("passages", [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257])
@pytest.mark.parametrize("size", [96, 1000])
def test_the_edges_of_tiles_and_blocks(passages: int, size: int) -> None:
    q_QD, p_PD = data("random", passages)
    assert same(top_k(q_QD, blocks_of(p_PD, size), 3, SMALL), q_QD, p_PD, 3)


def test_tiles_and_threads_change_nothing() -> None:
    """Library products differ in their last digits from shape to shape; scores do not."""
    random = np.random.default_rng(0)
    q_QD = random.standard_normal((50, 64)).astype(np.float32)
    p_PD = random.standard_normal((1000, 64)).astype(np.float32)
    whole = top_k(q_QD, [(0, p_PD)], 20)
    threads = torch.get_num_threads()
    for count, queries, passages in ((1, 7, 33), (2, 50, 256), (2, 1, 1000), (1, 50, 5)):
        set_threads(count)
        tiling = replace(CPU, queries=queries, passages=passages)
        found = top_k(q_QD, blocks_of(p_PD, 333), 20, tiling)
        set_threads(threads)
        for ours, expected in zip(found, whole, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_sums_that_lose_digits_are_made_again() -> None:
    """2**60 + 1 - 2**60 is 1, not 0."""
    q_QD = np.array([[2.0**30, 1, 2.0**30]], np.float32)
    p_PD = np.array([[0, 0.5, 0], [2.0**30, 1, -(2.0**30)], [0, 0.75, 0]], np.float32)
    for tiling in (SMALL, HALF):
        scores, rows = top_k(q_QD, [(0, p_PD)], 2, tiling)
        assert (scores.tolist(), rows.tolist()) == ([[1, 0.75]], [[1, 2]])


def test_of_equals_across_block_borders_the_lower_rows_win() -> None:
    q_QD = np.ones((1, 1), np.float32)
    p_PD = np.array([[1], [2], [1], [2], [2], [1], [2], [1]], np.float32)
    for size in range(1, 9):
        scores, rows = top_k(q_QD, blocks_of(p_PD, size), 6)
        assert rows.tolist() == [[1, 3, 4, 6, 0, 2]]
        assert scores.tolist() == [[2, 2, 2, 2, 1, 1]]


def test_row_numbers_start_where_the_blocks_do() -> None:
    p_PD = np.array([[1], [3], [2]], np.float32)
    _, rows = top_k(np.ones((1, 1), np.float32), [(100, p_PD), (200, p_PD)], 3)
    assert rows.tolist() == [[101, 201, 102]]


def test_a_corpus_smaller_than_k_gives_short_lists() -> None:
    scores, rows = top_k(np.ones((2, 1), np.float32), [(0, np.ones((3, 1), np.float32))], 10)
    assert rows.shape == scores.shape == (2, 3)


@pytest.mark.parametrize("queries", [0, 2])
@pytest.mark.parametrize("blocks", [[], [(0, np.ones((0, 2), np.float32))]])
def test_no_passages(queries: int, blocks: list[tuple[int, np.ndarray]]) -> None:
    scores, rows = top_k(np.ones((queries, 2), np.float32), blocks, 2)
    assert rows.shape == scores.shape == (queries, 0)


def test_no_queries() -> None:
    scores, rows = top_k(np.empty((0, 2), np.float32), [(0, np.ones((3, 2), np.float32))], 2)
    assert rows.shape == scores.shape == (0, 2)


# ---- what is no number


@pytest.mark.parametrize("tiling", [SMALL, HALF])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_passages_that_are_no_numbers_are_no_candidates(tiling: Tiling, value: float) -> None:
    q_QD, p_PD = data("random", 60)
    p_PD[[0, 5, 6, 33, 59], 2] = value
    expected = p_PD.copy()
    expected[[0, 5, 6, 33, 59]] = np.nan
    for k in (4, 60):
        found = top_k(q_QD, blocks_of(p_PD, 25), k, tiling)
        assert same(found, q_QD, expected, k)
        assert found[1].shape == (7, min(k, 55))


def test_all_passages_without_numbers() -> None:
    scores, rows = top_k(np.ones((2, 1), np.float32), [(0, np.full((3, 1), np.nan))], 2)
    assert rows.shape == scores.shape == (2, 0)


def test_a_query_that_is_no_number() -> None:
    q_QD = np.array([[1], [np.nan]], np.float32)
    with pytest.raises(ValueError, match="NaN or infinity"):
        top_k(q_QD, [(0, np.ones((3, 1), np.float32))], 2)


# ---- where passages lie


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("tiling", [SMALL, HALF])
def test_memory_maps(tmp_path: Path, dtype: type, tiling: Tiling) -> None:
    q_QD, p_PD = data("random", 100)
    p_PD = p_PD.astype(dtype)
    blocks = []
    for first, block in blocks_of(p_PD, 30):
        np.save(tmp_path / f"{first}.npy", block)
        blocks.append((first, np.load(tmp_path / f"{first}.npy", mmap_mode="r")))
    assert same(top_k(q_QD, blocks, 9, tiling), q_QD, p_PD, 9)


def test_pages_of_a_map_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.npy"
    np.save(path, np.random.default_rng(0).standard_normal((20_000, 32), np.float32))
    mapped = np.load(path, mmap_mode="r")
    top_k(np.ones((2, 32), np.float32), [(0, mapped)], 5)
    held = re.search(rf"{path}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
    assert held is not None
    assert held[1] == "0"


def test_tensors_and_other_arrays() -> None:
    q_QD, p_PD = data("random", 40)
    expected = top_k(q_QD, [(0, p_PD)], 5)
    fixed = p_PD.copy()
    fixed.flags.writeable = False
    for block in (torch.from_numpy(p_PD), p_PD.astype(np.float64), np.asfortranarray(p_PD), fixed):
        for ours, theirs in zip(top_k(q_QD, [(0, block)], 5, SMALL), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_tiling_of_a_gpu_differs_in_numbers_only() -> None:
    q_QD, p_PD = data("random", 500)
    tiling = replace(GPU, device="cpu")
    assert same(top_k(q_QD, [(0, torch.from_numpy(p_PD).half())], 8, tiling), q_QD,
                p_PD.astype(np.float16), 8)  # fmt: skip


# ---- given pairs, small matrices


def test_scores_of() -> None:
    q_QD, p_PD = data("random", 20)
    rows = np.array([[3, -1, 19]] * 7)
    found = scores_of(q_QD, blocks_of(p_PD, 6), rows)
    products = q_QD.astype(np.float64) @ p_PD.astype(np.float64).T
    np.testing.assert_array_equal(found[:, [0, 2]], products[:, [3, 19]].astype(np.float32))
    assert (found[:, 1] == -np.inf).all()


def test_best_decides_ties_at_the_border_by_row() -> None:
    scores, rows = best(np.array([[1.0, 2.0, 1.0, 1.0]]), np.array([[9, 8, 7, 6]]), 2)
    assert sorted(zip(scores[0].tolist(), rows[0].tolist(), strict=True)) == [(1, 6), (2, 8)]


def test_in_order() -> None:
    scores = np.array([[1.0, 2.0, 2.0, -np.inf], [0.0, -0.0, 5.0, 5.0]])
    rows = np.array([[9, 8, 7, 1], [4, 3, 2, 1]])
    best_scores, best_rows = in_order(scores, rows, 3)
    assert best_rows.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert best_scores.tolist() == [[2, 2, 1], [5, 5, 0]]
