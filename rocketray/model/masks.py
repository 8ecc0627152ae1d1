"""Columns a row must not see: passages known to answer its query, and other groups' passages.

Decided by row numbers alone. Every worker knows all ids of the global batch, so this needs no
communication, and it is stored as the few (row, column) pairs, never as a whole matrix.
"""

# Shapes: R rows of the global batch, G columns, C rows of a chunk, K known (query, passage) pairs.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Known:
    """Known positives as two columns, sorted by query."""

    queries_K: np.ndarray
    passages_K: np.ndarray

    @classmethod
    def of(cls, queries_K: np.ndarray, passages_K: np.ndarray) -> Known:
        order = np.argsort(queries_K, kind="stable")
        return cls(queries_K[order], passages_K[order])

    def of_rows(self, queries_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, passage) of every known positive of every row's query."""
        rows, places = _ranges(self.queries_K, queries_R)
        return rows, self.passages_K[places]


@dataclass(frozen=True, eq=False)
class Masks:
    """The masked cells of one global batch, sorted by row."""

    rows: np.ndarray
    columns: np.ndarray
    shape: tuple[int, int]
    groups_R: np.ndarray | None = None
    """Rows see the columns of the rows of their own group only; None: all columns."""

    @property
    def count(self) -> int:
        """Cells masked by id (those outside of a row's group were never columns)."""
        return len(self.rows)

    def mask(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """bool [stop - start, G] of a row range, True = masked."""
        lo, hi = np.searchsorted(self.rows, [start, stop])
        mask_CG = torch.zeros(stop - start, self.shape[1], dtype=torch.bool, device=device)
        cells = np.stack([self.rows[lo:hi] - start, self.columns[lo:hi]])
        row, column = torch.from_numpy(cells).to(device)
        mask_CG[row, column] = True
        if self.groups_R is not None:
            groups_R = torch.from_numpy(self.groups_R).to(device)
            groups_G = groups_R.repeat_interleave(self.shape[1] // self.shape[0])
            mask_CG |= groups_R[start:stop, None] != groups_G
        return mask_CG


def known_positives(
    queries_R: np.ndarray,
    columns_G: np.ndarray,
    known: Known | None,
    groups_R: np.ndarray | None = None,
) -> Masks:
    """Mask columns that hold a known positive of the row, or the row's positive once more.

    Args:
        queries_R: the query of each row.
        columns_G: the passage of each column; row i owns columns [i * G / R, (i + 1) * G / R) and
            the first of them is its positive, which is never masked.
        known: known positives; None masks nothing (the paper).
        groups_R: as in `Masks`.
    """
    shape = (len(queries_R), len(columns_G))
    if known is None:
        return Masks(np.empty(0, np.int64), np.empty(0, np.int64), shape, groups_R)
    own_R = np.arange(shape[0]) * (shape[1] // shape[0])
    rows, passages = known.of_rows(queries_R)
    rows = np.concatenate([rows, np.arange(shape[0])])
    passages = np.concatenate([passages, columns_G[own_R]])
    order_G = np.argsort(columns_G, kind="stable")
    asked, places = _ranges(columns_G[order_G], passages)
    cells = np.unique(rows[asked] * shape[1] + order_G[places])
    rows, columns = np.divmod(cells, shape[1])
    keep = columns != own_R[rows]
    if groups_R is not None:
        keep &= groups_R[columns // (shape[1] // shape[0])] == groups_R[rows]
    return Masks(rows[keep], columns[keep], shape, groups_R)


def _ranges(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with ordered[j] == wanted[i], by i."""
    first = np.searchsorted(ordered, wanted, "left")
    counts = np.searchsorted(ordered, wanted, "right") - first
    asked = np.repeat(np.arange(len(wanted)), counts)
    within = np.arange(len(asked)) - np.repeat(np.cumsum(counts) - counts, counts)
    return asked, first[asked] + within
