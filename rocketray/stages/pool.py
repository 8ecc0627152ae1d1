"""Pool: two runs over the same queries -> one list of candidates, and who found each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from rocketray.artifacts import Made, Version
from rocketray.schema import RUN

POOL = RUN.append(pa.field("found_by", pa.list_(pa.string())))
"""RUN, and for each passage who found it: `dual_0`, `bm25` or `both`; in a later round the names of
all who did, such as `dual_0+bm25+dual_1`."""

Lists = Sequence[Sequence[int]]


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
        tables = self.dense.table(item), self.lexical.table(item)
        dense, lexical, passages = merged(*tables, self.depth, item)
        found_by = [
            [who(passage, *lists) for passage in row]
            for row, *lists in zip(passages, dense, lexical, strict=True)
        ]
        counted = Counter(name for row in found_by for name in row)
        facts = {name: counted[name] for name in ("dual_0", "bm25", "both")}
        return pooled(tables[0]["query"], passages, found_by, facts)


class LaterPool:
    """A later round's pool: what the round's retriever finds and the pool of the round before in
    turn, the new first, `depth` in all.

    `found_by` is who brought a passage into the pool before, and `finder` where its list, however
    deep, holds the passage too.
    """

    code = 1
    light = True

    def __init__(self, *, dense: str, before: str, depth: int, finder: str) -> None:
        self.dense, self.before = Version.open(dense), Version.open(before)
        self.depth, self.finder = depth, finder

    def __call__(self, item: int) -> Made:
        tables = self.dense.table(item), self.before.table(item)
        dense, before, passages = merged(*tables, self.depth, item)
        known = tables[1]["found_by"].to_pylist()
        found_by = [
            finders(row, new, dict(zip(old, names, strict=True)), self.finder)
            for row, new, old, names in zip(passages, dense, before, known, strict=True)
        ]
        facts = dict(Counter(name for row in found_by for name in row))
        return pooled(tables[0]["query"], passages, found_by, facts)


def merged(
    first: pa.Table, second: pa.Table, depth: int, item: int
) -> tuple[Lists, Lists, list[list[int]]]:
    """Both runs' lists, and what they come to in turn."""
    if first["query"] != second["query"]:
        raise ValueError(f"block {item}: the two runs are not over the same queries.")
    lists = first["passages"].to_pylist(), second["passages"].to_pylist()
    return *lists, [in_turn(*pair, depth) for pair in zip(*lists, strict=True)]


def in_turn(first: Sequence[int], second: Sequence[int], depth: int) -> list[int]:
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


def who(passage: int, dense: Sequence[int], lexical: Sequence[int]) -> str:
    if passage in dense:
        return "both" if passage in lexical else "dual_0"
    return "bm25"


def finders(
    passages: Sequence[int], new: Sequence[int], before: Mapping[int, str], finder: str
) -> list[str]:
    """Of each passage all who found it, oldest first. Each is in `new` or a key of `before`."""
    found = []
    for passage in passages:
        older = before.get(passage, "").replace("both", "dual_0+bm25")
        newer = finder if passage in new else ""
        found.append("+".join(filter(None, (older, newer))))
    return found


def pooled(
    queries: pa.ChunkedArray, passages: list[list[int]], found_by: list[list[str]],
    facts: dict[str, int],
) -> Made:  # fmt: skip
    columns = {
        "query": queries,
        "passages": passages,
        "scores": [list(range(len(row), 0, -1)) for row in passages],
        "found_by": found_by,
    }
    return Made({"table": pa.table(columns, schema=POOL)}, len(queries), facts)
