"""Small versions made by hand: what a stage reads in its test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rocketray.artifacts import TABLE, Draft, commit_block
from rocketray.schema import QRELS, QUERIES, RUN, SCORED, VERDICTS

Columns = Mapping[str, Sequence[Any]]


def version(folder: Path, *blocks: pa.Table) -> str:
    """A finished version with these blocks; its path, as stages take it."""
    draft = Draft(folder, folder.name, {"test": folder.name})
    for number, table in enumerate(blocks):
        commit_block(folder, number, {TABLE: table}, rows=len(table), key="", facts={})
    return str(draft.finish({}).path)


def table(schema: pa.Schema, *rows: Sequence[Any]) -> pa.Table:
    """Rows in the schema's order of columns."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def qrels(*rows: tuple[int, int, int]) -> pa.Table:
    return table(QRELS, *rows)


def run(*rows: tuple[int, list[int]]) -> pa.Table:
    """Scores fall from 0 by one a rank."""
    return table(RUN, *((query, row, falling(row)) for query, row in rows))


def scored(*rows: tuple[int, list[int], list[float]]) -> pa.Table:
    return table(SCORED, *((query, row, falling(row), ce) for query, row, ce in rows))


def verdicts(*rows: tuple[int, list[int], list[float], list[str]]) -> pa.Table:
    return table(VERDICTS, *((query, row, falling(row), ce, v) for query, row, ce, v in rows))


def questions(*texts: str, answers: Sequence[Sequence[str]] | None = None) -> pa.Table:
    found = answers or [[] for _ in texts]
    rows = [(f"q{n}", text, True, list(found[n])) for n, text in enumerate(texts)]
    return table(QUERIES, *rows)


def rows_of(*queries: int) -> pa.Table:
    """A table of chosen queries."""
    return pa.table({"query": pa.array(queries, pa.int64())})


def falling(row: Sequence[int]) -> list[float]:
    return [-float(rank) for rank in range(len(row))]
