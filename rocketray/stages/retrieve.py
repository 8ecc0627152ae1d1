"""Retrieve: a block of queries x a group of passages -> run; then `MergeTopk` joins the groups."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pyarrow as pa

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

    def __call__(self, item: Cell) -> Made:
        rows = self.queries.table(item["queries"])["query"].to_numpy()
        q_QD = encode_queries(self.model, self.assembler, self.tokens, rows)
        blocks = self.embeddings.blocks[item["first"] : item["last"]]
        self.embeddings.fetch("embeddings", blocks=range(item["first"], item["last"]))
        arrays = ((b.first_row, self.embeddings.array(b.number, "embeddings")) for b in blocks)
        scores, passages = top_k(q_QD, arrays, self.k)
        return Made({"table": run_table(rows, passages, scores)}, len(rows))


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
        passages = np.concatenate([_matrix(t["passages"]) for t in tables], axis=1)
        scores = np.concatenate([_matrix(t["scores"]) for t in tables], axis=1)
        scores, passages = in_order(scores, passages, self.k)
        return Made({"table": run_table(queries, passages, scores)}, len(queries))


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


def run_table(queries: np.ndarray, passages: np.ndarray, scores: np.ndarray) -> pa.Table:
    """A RUN table from [Q] and [Q, k] arrays of equal length per query."""
    columns = [pa.array(queries, pa.int64()), _lists(passages), _lists(scores)]
    return pa.Table.from_arrays(columns, schema=RUN)


def _lists(values: np.ndarray) -> pa.ListArray:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks()
    matrix: np.ndarray = flat.flatten().to_numpy().reshape(len(flat), -1)
    return matrix
