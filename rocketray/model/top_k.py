"""Exact top-k by inner product, and the one rule for ties: higher score, then lower row number.

Shapes: Q queries, P passages of one block, D embedding size, k results.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch


def top_k(
    q_QD: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stream blocks of passages past the queries, keeping the best k of each.

    Args:
        q_QD: float32 query embeddings.
        blocks: (row number of the first passage, p_PD), in ascending order.
        k: how many to keep; fewer passages give shorter lists.

    Returns:
        scores_Qk float32 and rows_Qk int64, best first.
    """
    queries_QD = torch.from_numpy(np.ascontiguousarray(q_QD))
    scores_Qk = np.full((len(q_QD), 0), -np.inf, np.float32)
    rows_Qk = np.zeros((len(q_QD), 0), np.int64)
    for first_row, p_PD in blocks:
        scores_QP = queries_QD @ torch.from_numpy(np.array(p_PD, np.float32)).T
        rows_P = np.arange(first_row, first_row + len(p_PD))
        scores = np.concatenate([scores_Qk, scores_QP.numpy()], axis=1)
        rows = np.concatenate([rows_Qk, np.broadcast_to(rows_P, scores_QP.shape)], axis=1)
        scores_Qk, rows_Qk = best(scores, rows, k)
    return in_order(scores_Qk, rows_Qk, k)


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each line, unordered, boundary ties decided by row number."""
    if scores.shape[1] <= k:
        return scores, rows
    values, places = torch.topk(torch.from_numpy(scores), k, sorted=False)
    best_scores, best_rows = values.numpy(), np.take_along_axis(rows, places.numpy(), axis=1)
    # topk takes any of several equal k-th scores; those lines (few) are sorted in full.
    tied = (scores >= best_scores.min(axis=1, keepdims=True)).sum(axis=1) > k
    if tied.any():
        best_scores[tied], best_rows[tied] = in_order(scores[tied], rows[tied], k)
    return best_scores, best_rows


def in_order(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each line sorted by score (falling), then row number, and cut to k."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
