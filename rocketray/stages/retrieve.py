"""Retrieve: a block of queries x a group of passages -> run; then `MergeTopk` joins the groups."""

# Shapes: Q queries of a block, D embedding size, k results.

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import torch

from rocketray.artifacts import Made, Version
from rocketray.model import index
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import Encoder
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.model.top_k import CPU, GPU, Block, in_order, scores_of, top_k
from rocketray.schema import RUN

Group = tuple[int, int]
"""Blocks first..last-1 of the embeddings."""


class Cell(TypedDict):
    """One cell of the grid of query blocks x passage groups."""

    queries: int
    """Block of the table of queries."""
    number: int
    """Of the group; its index has the same."""
    group: Group


class Retrieve:
    """The k best passages of every query in a cell: exact, or what an index finds.

    The query tower lives here too: a cell encodes its own queries, which costs little beside the
    passages, so query embeddings never need a place of their own. A group stays open from one cell
    to the next: in the GPU's memory, or as an index.
    """

    code = 4
    gpu = True

    def __init__(
        self, *, model: str, queries: str, query_tokens: str, embeddings: str, k: int,
        indexes: str | None = None, probe: int | None = None, gpu: bool | None = None,
    ) -> None:  # fmt: skip
        dual = DualEncoder.open(f"{model}/model")
        self.encode = Encoder(dual, "query", gpu=gpu)
        self.place = self.encode.passes.place
        self.assembler = Assembler(Tokenizer(dual.tokenizer_folder))
        self.queries = Version.open(queries)
        self.tokens = TokenStore(query_tokens)
        self.left_out = Version.open(query_tokens).left_out
        self.embeddings = Version.open(embeddings)
        self.k = k
        self.indexes = Version.open(indexes) if indexes else None
        self.probe = probe
        self.opened: Group | None = None
        self.blocks: list[tuple[int, Block]] = []
        self.index: index.Index | None = None

    def rows(self, item: Cell) -> np.ndarray:
        queries: np.ndarray = self.queries.table(item["queries"])["query"].to_numpy()
        return queries

    def __call__(self, item: Cell, without: Sequence[int] = ()) -> Made:
        rows = self.rows(item)
        kept_Q = ~np.isin(rows, [*without, *self.left_out])
        passages_Qk = np.full((len(rows), self.k), -1)
        scores_Qk = np.full((len(rows), self.k), -np.inf, np.float32)
        if kept_Q.any():
            scores, passages = self._search(item, rows[kept_Q])
            scores_Qk[kept_Q, : scores.shape[1]] = scores
            passages_Qk[kept_Q, : passages.shape[1]] = passages
        return Made({"table": run_table(rows, passages_Qk, scores_Qk)}, len(rows))

    def _search(self, item: Cell, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores and passages, best first; where a list is shorter, its rest is passage -1."""
        q_QD = self.encode(self.assembler, self.tokens, rows)
        self._open(item)
        if self.index is None:
            tiling = GPU if self.place.type == "cuda" else CPU
            return top_k(q_QD, self.blocks, self.k, tiling)
        found_Qk = index.search(self.index, q_QD, self.k)
        return in_order(scores_of(q_QD, self.blocks, found_Qk), found_Qk, self.k)

    def _open(self, item: Cell) -> None:
        """Make the cell's group the one that is searched."""
        if self.opened == item["group"]:
            return
        self.embeddings.fetch("embeddings", blocks=range(*item["group"]))
        self.blocks, self.index = [], None  # Before the next: memory may not hold two groups.
        for block in self.embeddings.blocks[slice(*item["group"])]:
            array = self.embeddings.array(block.number, "embeddings")
            self.blocks.append((block.first_row, array if self.indexes else self._near(array)))
        if self.indexes:
            self.index = index.from_array(self.indexes.array(item["number"], "index"))
            index.set_probe(self.index, self.probe)
        self.opened = item["group"]

    def _near(self, array: np.ndarray) -> Block:
        """A GPU holds its group; a CPU reads it from the file, a tile at a time."""
        return torch.from_numpy(np.array(array)).cuda() if self.place.type == "cuda" else array


class MergeTopk:
    """Joins the passage groups of a block of queries."""

    code = 2

    def __init__(self, *, cells: str, groups: int, k: int) -> None:
        self.cells = Version.open(cells)
        self.groups = groups
        self.k = k

    def __call__(self, item: int) -> Made:
        step = len(self.cells.blocks) // self.groups
        numbers = [group * step + item for group in range(self.groups)]
        tables = [self.cells.table(number) for number in numbers]
        queries = tables[0]["query"].to_numpy()
        passages = np.concatenate([_matrix(t["passages"], -1) for t in tables], axis=1)
        scores = np.concatenate([_matrix(t["scores"], -np.inf) for t in tables], axis=1)
        # What one group had to leave out is left out: by place, for all have the same queries.
        places = [place for n in numbers for place, _ in self.cells.blocks[n].left_out]
        left_out = np.array(places, np.int64)
        passages[left_out] = -1
        scores[left_out] = -np.inf
        scores, passages = in_order(scores, passages, self.k)
        return Made({"table": run_table(queries, passages, scores)}, len(queries))


def groups_of(passage_rows: Sequence[int], group_rows: int) -> list[Group]:
    """Groups are whole blocks of about `group_rows` rows: they depend on the table, never on
    workers."""
    per_group = max(1, group_rows // max(passage_rows))
    count = len(passage_rows)
    return [(first, min(first + per_group, count)) for first in range(0, count, per_group)]


def grid(query_blocks: int, groups: Sequence[Group]) -> list[Cell]:
    """Cells, group by group, so that a worker seldom has to open another."""
    return [
        Cell(queries=queries, number=number, group=group)
        for number, group in enumerate(groups)
        for queries in range(query_blocks)
    ]


def run_table(queries: np.ndarray, passages: np.ndarray, scores: np.ndarray) -> pa.Table:
    """A RUN table from [Q] and [Q, k] arrays; where a list is shorter, its rest is passage -1."""
    found = passages >= 0
    offsets = np.concatenate([[0], found.sum(axis=1).cumsum()]).astype(np.int32)
    lists = [pa.ListArray.from_arrays(offsets, pa.array(v[found])) for v in (passages, scores)]
    return pa.Table.from_arrays([pa.array(queries, pa.int64()), *lists], schema=RUN)


def _matrix(column: pa.ChunkedArray, empty: float) -> np.ndarray:
    """[Q, longest list]; shorter lists end in `empty`."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy()
    values = lists.flatten().to_numpy()
    matrix = np.full((len(lengths), max(lengths, default=0)), empty, values.dtype)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = values
    return matrix
