"""Index: embeddings -> a trained, empty index -> one filled index per group of passages; and how
many of the best passages it misses."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import pyarrow as pa

from rocketray.artifacts import Made, Version
from rocketray.model import index
from rocketray.schema import sample

INDEX = "index"
"""The part that holds an index's bytes: an array like any other, so that its sha256 stands in the
manifest, is compared before a stage reads it, and no other bytes are ever given to faiss."""


class TrainIndex:
    """An empty index that knows where passages lie, from a seeded sample of the embeddings.

    Groups share it, so that all have the same lists and codes.
    """

    code = 1

    def __init__(self, *, embeddings: str, factory: str, rows: int, seed: int) -> None:
        self.embeddings = Version.open(embeddings)
        self.factory = factory
        self.rows = rows
        self.seed = seed

    def __call__(self, item: int) -> Made:
        """There is one block."""
        chosen = sample(np.arange(self.embeddings.rows), self.rows, self.seed)
        parts = []
        for block in self.embeddings.blocks:
            start, end = np.searchsorted(chosen, (block.first_row, block.first_row + block.rows))
            array = self.embeddings.array(block.number, "embeddings")
            parts.append(np.array(array[chosen[start:end] - block.first_row], np.float32))
        sample_RD = np.concatenate(parts)
        sample_RD = sample_RD[np.isfinite(sample_RD).all(axis=1)]
        trained = index.train(self.factory, sample_RD)
        return Made({INDEX: index.to_array(trained)}, len(sample_RD))


class FillIndex:
    """The trained index with the passages of one group: blocks first..last-1 of the embeddings."""

    code = 1

    def __init__(self, *, embeddings: str, trained: str) -> None:
        self.embeddings = Version.open(embeddings)
        self.trained = Version.open(trained)

    def __call__(self, item: tuple[int, int]) -> Made:
        filled = index.from_array(self.trained.array(0, INDEX))
        for block in self.embeddings.blocks[slice(*item)]:
            array = self.embeddings.array(block.number, "embeddings")
            index.add(filled, block.first_row, array)
        return Made({INDEX: index.to_array(filled)}, filled.ntotal)


class Recall:
    """How many of the passages that exact search finds an index finds too, for some queries."""

    code = 1
    light = True

    def __init__(self, *, run: str, exact: str) -> None:
        self.run = Version.open(run)
        self.exact = Version.open(exact)

    def __call__(self, item: int) -> Made:
        """There is one block; facts `found` and `wanted`, over all queries."""
        exact = _lists(self.exact)
        run = _lists(self.run, exact)
        found = [len({*rows} & {*run[query]}) for query, rows in exact.items()]
        wanted = [len(rows) for rows in exact.values()]
        columns = {"query": list(exact), "found": found, "wanted": wanted}
        table = pa.table({name: pa.array(column, pa.int64()) for name, column in columns.items()})
        return Made({"table": table}, len(table), {"found": sum(found), "wanted": sum(wanted)})


def _lists(run: Version, queries: Container[int] | None = None) -> dict[int, list[int]]:
    """Passages by query, block by block: a run may be larger than the memory."""
    found = {}
    for block in run.blocks:
        table = run.table(block.number)
        for row, query in enumerate(table["query"].to_pylist()):
            if queries is None or query in queries:
                found[query] = table["passages"][row].as_py()
    return found
