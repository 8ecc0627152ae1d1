"""Distant positives: which passages of a run hold an answer string (recipe `nq`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rocketray.answers import contains_answer
from rocketray.artifacts import Made, Version
from rocketray.schema import QRELS


class AnswerPositives:
    """QRELS of every listed passage that holds an answer, in the run's order.

    The paper's positive on Natural Questions is the first of them (section 4.1 and the released
    `construct_nq_train_*.py`); the others are no negatives.
    """

    code = 1

    def __init__(self, *, run: str, queries: str, passages: str, depth: int) -> None:
        self.run = Version.open(run)
        self.queries = Version.open(queries)
        self.passages = Version.open(passages)
        self.depth = depth

    def __call__(self, item: int) -> Made:
        run = self.run.table(item)
        queries = run["query"].to_pylist()
        lists = [row[: self.depth] for row in run["passages"].to_pylist()]
        # Read again for each block: whole, the texts of a large corpus fill a worker's memory.
        answers = _read(self.queries, queries, "answers")
        texts = _read(self.passages, [p for row in lists for p in row], "title", "text")
        pairs = [
            (query, passage)
            for query, row in zip(queries, lists, strict=True)
            for passage in row
            if contains_answer(*texts[passage], *answers[query])
        ]
        columns = {
            "query": [query for query, _ in pairs],
            "passage": [passage for _, passage in pairs],
            "relevance": [1] * len(pairs),
        }
        return Made({"table": pa.table(columns, schema=QRELS)}, len(pairs))


def _read(table: Version, rows: list[int], *columns: str) -> dict[int, tuple[Any, ...]]:
    """Values of some columns, by row."""
    wanted = np.unique(np.array(rows, np.int64))
    found = table.take(wanted, *columns)
    values = zip(*(found[name].to_pylist() for name in columns), strict=True)
    return dict(zip(wanted.tolist(), values, strict=True))
