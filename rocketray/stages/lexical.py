"""Lexical: a block of queries -> BM25's run. The yardstick in every table, and DPR's negatives."""

from __future__ import annotations

import bm25s
import numpy as np
import pyarrow as pa

from rocketray.artifacts import Made, Version
from rocketray.model.top_k import best, in_order
from rocketray.schema import RUN


class Lexical:
    """BM25 with k1 0.9 and b 0.4 (Anserini's values, the paper's baseline) over title and text.

    Passages without a common word are not listed, so lists may be short.
    """

    code = 1

    def __init__(self, *, passages: str, queries: str, texts: str, k: int) -> None:
        table = Version.open(passages).read()
        pairs = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        self.index = bm25s.BM25(k1=0.9, b=0.4)
        self.index.index(_words([f"{title} {text}" for title, text in pairs]), show_progress=False)
        self.queries = Version.open(queries)
        self.texts = Version.open(texts).read()["text"]
        self.k = k

    def __call__(self, item: int) -> Made:
        queries = self.queries.table(item)["query"].to_pylist()
        words = _words([self.texts[query].as_py() for query in queries])
        rows = [self._search(words_of_query) for words_of_query in words]
        columns = {
            "query": queries,
            "passages": [passages for passages, _ in rows],
            "scores": [scores for _, scores in rows],
        }
        return Made({"table": pa.table(columns, schema=RUN)}, len(queries))

    def _search(self, words: list[str]) -> tuple[list[int], list[float]]:
        known = [word for word in words if word in self.index.vocab_dict]
        if not known:
            return [], []
        scores = self.index.get_scores(known).astype(np.float32)
        rows = np.flatnonzero(scores > 0)
        # Frequent words match most of a corpus: only what is listed is put in order.
        found_scores, found_rows = in_order(*best(scores[None, rows], rows[None], self.k), self.k)
        return found_rows[0].tolist(), found_scores[0].tolist()


def _words(texts: list[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        texts, stopwords="en", return_ids=False, show_progress=False
    )
    return words
