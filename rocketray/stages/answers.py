"""Distant positives: which passages of a run hold an answer string (recipe `nq`)."""

from __future__ import annotations

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
        self.answers = Version.open(queries).read()["answers"]
        self.passages = Version.open(passages).read()
        self.depth = depth

    def __call__(self, item: int) -> Made:
        run = self.run.table(item)
        pairs = [
            (query, passage)
            for query, row in zip(
                run["query"].to_pylist(), run["passages"].to_pylist(), strict=True
            )
            for passage in row[: self.depth]
            if self._holds(passage, self.answers[query].as_py())
        ]
        columns = {
            "query": [query for query, _ in pairs],
            "passage": [passage for _, passage in pairs],
            "relevance": [1] * len(pairs),
        }
        return Made({"table": pa.table(columns, schema=QRELS)}, len(pairs))

    def _holds(self, passage: int, answers: list[str]) -> bool:
        title, text = (self.passages[name][passage].as_py() for name in ("title", "text"))
        return contains_answer(title, text, answers)
