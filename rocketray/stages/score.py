"""Score: a block of a run -> the cross-encoder's probability for its top passages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rocketray.artifacts import Made, Version, read_table
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.inference import device, score_pairs
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.schema import PAIRS, SCORED
from rocketray.storage import fetch_all


class Score:
    """SCORED: the first `depth` passages of each query with their ce_scores.

    Pairs whose ce_score is known (same texts, same cross-encoder) are read, not scored. Part
    `pairs` holds the new ones, for those who come later.
    """

    code = 1

    def __init__(
        self, *, cross: str, run: str, query_tokens: str, passage_tokens: str, depth: int,
        known: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.model = CrossEncoder.open(f"{cross}/model").to(device()).eval()
        self.assembler = Assembler(Tokenizer(self.model.tokenizer_folder))
        self.run = Version.open(run)
        self.queries, self.passages = TokenStore(query_tokens), TokenStore(passage_tokens)
        self.query_hashes = hashes(query_tokens)
        self.passage_hashes = hashes(passage_tokens)
        self.depth = depth
        self.known = PairScores(known)

    def __call__(self, item: int) -> Made:
        run = self.run.table(item)
        lists = [row[: self.depth] for row in run["passages"].to_pylist()]
        sizes = np.array([len(row) for row in lists])
        queries = np.repeat(run["query"].to_numpy(), sizes)
        passages = np.array([p for row in lists for p in row], dtype=np.int64)
        query_hashes, passage_hashes = self.query_hashes[queries], self.passage_hashes[passages]
        ce_scores = self.known.find(query_hashes, passage_hashes)
        new = np.flatnonzero(np.isnan(ce_scores))
        if len(new):
            ce_scores[new] = score_pairs(
                self.model, self.assembler,
                self.queries, queries[new], self.passages, passages[new],
            )  # fmt: skip
        table = _scored(run, sizes, passages, ce_scores)
        pairs = pa.Table.from_arrays(
            [pa.array(query_hashes[new]), pa.array(passage_hashes[new]), pa.array(ce_scores[new])],
            schema=PAIRS,
        )
        facts = {"pairs": len(passages), "known": len(passages) - len(new)}
        return Made({"table": table, "pairs": pairs}, len(run), facts)


class PairScores:
    """Pairs scored before, looked up by the hashes of their texts."""

    def __init__(self, files: Sequence[str]) -> None:
        fetch_all(map(Path, files))
        tables = [read_table(Path(file)) for file in files] or [PAIRS.empty_table()]
        pairs = pa.concat_tables(tables)
        keys = _mix(pairs["query_hash"].to_numpy(), pairs["passage_hash"].to_numpy())
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.passage_hashes = pairs["passage_hash"].to_numpy()[order]
        self.ce_scores = pairs["ce_score"].to_numpy()[order]

    def find(self, query_hashes: np.ndarray, passage_hashes: np.ndarray) -> np.ndarray:
        """ce_scores, float32; NaN where a pair is new."""
        found = np.full(len(query_hashes), np.nan, np.float32)
        if len(self.keys):
            keys = _mix(query_hashes, passage_hashes)
            places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            same = (self.keys[places] == keys) & (self.passage_hashes[places] == passage_hashes)
            found[same] = self.ce_scores[places[same]]
        return found


def hashes(tokens: str) -> np.ndarray:
    version = Version.open(tokens)
    version.fetch("hashes")
    parts = [version.array(b.number, "hashes") for b in version.blocks]
    return np.concatenate([*parts, np.empty(0, np.uint64)])


def _mix(query_hashes: np.ndarray, passage_hashes: np.ndarray) -> np.ndarray:
    # An odd constant (the golden ratio's) keeps (a, b) and (b, a) apart.
    mixed: np.ndarray = query_hashes ^ (passage_hashes * np.uint64(0x9E3779B97F4A7C15))
    return mixed


def _scored(
    run: pa.Table, sizes: np.ndarray, passages: np.ndarray, ce_scores: np.ndarray
) -> pa.Table:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    scores = [row[:n] for row, n in zip(run["scores"].to_pylist(), sizes, strict=True)]
    columns = [
        run["query"].combine_chunks(),
        pa.ListArray.from_arrays(offsets, pa.array(passages)),
        pa.array(scores, pa.list_(pa.float32())),
        pa.ListArray.from_arrays(offsets, pa.array(ce_scores)),
    ]
    return pa.Table.from_arrays(columns, schema=SCORED)
