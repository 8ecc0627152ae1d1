"""Pool: two runs over the same queries -> one list of candidates, and who found each."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from rocketray.artifacts import Made, Version
from rocketray.schema import RUN

POOL = RUN.append(pa.field("found_by", pa.list_(pa.string())))
"""RUN, and for each passage `dual_0`, `bm25` or `both`."""


class Pool:
    """The best of a dense run and of a lexical one in turn, dense first, `depth` in all.

    Hard negatives that one retriever finds and the other does not are of another kind: DPR's are
    BM25's, RocketQA's are dual_0's. A pool as deep as either list costs as many scored pairs.
    Two retrievers' scores do not compare, so `scores` fall by one a rank, as in a reranked run.
    """

    code = 1
    light = True

    def __init__(self, *, dense: str, lexical: str, depth: int) -> None:
        self.dense, self.lexical = Version.open(dense), Version.open(lexical)
        self.depth = depth

    def __call__(self, item: int) -> Made:
        dense, lexical = self.dense.table(item), self.lexical.table(item)
        if dense["query"] != lexical["query"]:
            raise ValueError(f"block {item}: the two runs are not over the same queries.")
        lists = list(
            zip(dense["passages"].to_pylist(), lexical["passages"].to_pylist(), strict=True)
        )
        passages = [in_turn(*pair, self.depth) for pair in lists]
        found_by = [
            [who(passage, *pair) for passage in row]
            for row, pair in zip(passages, lists, strict=True)
        ]
        columns = {
            "query": dense["query"],
            "passages": passages,
            "scores": [list(range(len(row), 0, -1)) for row in passages],
            "found_by": found_by,
        }
        counted = Counter(name for row in found_by for name in row)
        facts = {name: counted[name] for name in ("dual_0", "bm25", "both")}
        return Made({"table": pa.table(columns, schema=POOL)}, len(dense), facts)


def in_turn(first: list[int], second: list[int], depth: int) -> list[int]:
    """The next new one of each list in turn; when one is at its end, of the other."""
    rows = (iter(first), iter(second))
    found: dict[int, None] = {}
    before = -1
    while len(found) > before and len(found) < depth:
        before = len(found)
        for row in rows:
            passage = next((p for p in row if p not in found), None)
            if passage is not None and len(found) < depth:
                found[passage] = None
    return list(found)


def who(passage: int, dense: list[int], lexical: list[int]) -> str:
    if passage in dense:
        return "both" if passage in lexical else "dual_0"
    return "bm25"
