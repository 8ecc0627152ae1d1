"""Retrieve: a block of queries x a group of passages -> run; then `MergeTopk` joins the groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rocketray.artifacts import Made, Version
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import device, encode_queries
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.model.top_k import in_order, top_k
from rocketray.schema import RUN


class Cell(TypedDict):
    """One cell of the grid of query blocks x passage groups."""

    queries: int
    """Block of the table of queries."""
    first: int
    last: int
    """Blocks first..last-1 of the embeddings."""


class Retrieve:
    """The k best passages of every query in a cell, exact.

    The query tower lives here too: a cell encodes its own queries, which costs little beside the
    passages, so query embeddings never need a place of their own.
    """

    code = 1

    def __init__(
        self, *, model: str, queries: str, query_tokens: str, embeddings: str, k: int
    ) -> None:
        self.model = DualEncoder.open(f"{model}/model").to(device()).eval()
        self.assembler = Assembler(Tokenizer(self.model.tokenizer_folder))
        self.queries = Version.open(queries)
        self.tokens = TokenStore(query_tokens)
        self.embeddings = Version.open(embeddings)
        self.k = k

    def rows(self, item: Cell) -> np.ndarray:
        queries: np.ndarray = self.queries.table(item["queries"])["query"].to_numpy()
        return queries

    def __call__(self, item: Cell, without: Sequence[int] = ()) -> Made:
        rows = self.rows(item)
        kept = ~np.isin(rows, without)
        if not kept.any():
            nothing = np.empty((0, 0))
            return Made({"table": run_table(rows, nothing, nothing, kept)}, len(rows))
        q_QD = encode_queries(self.model, self.assembler, self.tokens, rows[kept])
        blocks = self.embeddings.blocks[item["first"] : item["last"]]
        self.embeddings.fetch("embeddings", blocks=range(item["first"], item["last"]))
        arrays = ((b.first_row, self.embeddings.array(b.number, "embeddings")) for b in blocks)
        scores, passages = top_k(q_QD, arrays, self.k)
        return Made({"table": run_table(rows, passages, scores, kept)}, len(rows))


class MergeTopk:
    """Joins the passage groups of a block of queries: `groups` cells in a row."""

    code = 1

    def __init__(self, *, cells: str, groups: int, k: int) -> None:
        self.cells = Version.open(cells)
        self.groups = groups
        self.k = k

    def __call__(self, item: int) -> Made:
        tables = [self.cells.table(item * self.groups + g) for g in range(self.groups)]
        queries = tables[0]["query"].to_numpy()
        # A query that one group had to leave out is left out.
        sizes = np.stack([pc.list_value_length(t["passages"]).to_numpy() for t in tables])
        kept: np.ndarray = np.all(sizes > 0, axis=0)
        passages = np.concatenate([_matrix(t["passages"], kept) for t in tables], axis=1)
        scores = np.concatenate([_matrix(t["scores"], kept) for t in tables], axis=1)
        scores, passages = in_order(scores, passages, self.k)
        return Made({"table": run_table(queries, passages, scores, kept)}, len(queries))


def grid(query_blocks: int, passage_rows: list[int], group_rows: int) -> tuple[list[Cell], int]:
    """Cells, query block by query block, and how many passage groups there are.

    Groups are whole blocks of about `group_rows` rows: they depend on the table, never on workers.
    """
    per_group = max(1, group_rows // max(passage_rows))
    starts = range(0, len(passage_rows), per_group)
    cells = [
        Cell(queries=q, first=s, last=min(s + per_group, len(passage_rows)))
        for q in range(query_blocks)
        for s in starts
    ]
    return cells, len(starts)


def run_table(
    queries: np.ndarray, passages: np.ndarray, scores: np.ndarray, kept: np.ndarray | None = None
) -> pa.Table:
    """A RUN table from [Q] and [Q, k] arrays of equal length per query; where `kept`, bool [Q], is
    false the query's lists are empty, and the other arrays do not have it."""
    kept = np.ones(len(queries), bool) if kept is None else kept
    ends = np.cumsum(kept * passages.shape[1])
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    lists = (
        pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), kind))
        for values, kind in ((passages, pa.int64()), (scores, pa.float32()))
    )
    return pa.Table.from_arrays([pa.array(queries, pa.int64()), *lists], schema=RUN)


def _matrix(column: pa.ChunkedArray, kept: np.ndarray) -> np.ndarray:
    """[Q, k] of the kept queries, whose lists are of one length."""
    flat = column.combine_chunks().filter(pa.array(kept)).flatten()
    matrix: np.ndarray = flat.to_numpy().reshape(kept.sum(), len(flat) // max(1, kept.sum()))
    return matrix
