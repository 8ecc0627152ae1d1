"""Score: a block of a run -> the cross-encoder's probability for its top passages."""

from __future__ import annotations

import socket
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rocketray.artifacts import Made, Version, fingerprint, open_array
from rocketray.errors import UserError
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.inference import Choices, Precision, Scorer
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.schema import PAIRS, RUN, SCORED, sample
from rocketray.storage import fetch_all, shown

Counts = dict[str, int]

SAMPLE = 256
"""Pairs of a block that are scored in float32 too, to count how often the verdicts agree."""


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """Which pairs scored in less than float32 are scored in float32 again."""

    within: float
    """Those whose ce_score lies so near to a threshold."""
    thresholds: Sequence[float]
    seed: int

    def near(self, ce_scores: np.ndarray) -> np.ndarray:
        """bool: what a rounding error could carry over a threshold."""
        distances = [np.abs(ce_scores - threshold) for threshold in self.thresholds]
        nearest: np.ndarray = np.min(distances, axis=0)
        return nearest <= self.within

    def sides(self, ce_scores: np.ndarray) -> np.ndarray:
        """How many thresholds each score has passed: two of equal sides get equal verdicts."""
        passed: np.ndarray = np.sum([ce_scores > t for t in self.thresholds], axis=0)
        return passed


class Score:
    """SCORED: the first `depth` passages of each query with their ce_scores.

    Pairs whose ce_score is known (same texts, same cross-encoder, same kind of score) are read, not
    scored; of new ones with the same texts the first is scored for all. Part `pairs` holds the new
    ones (PAIRS), for later runs. What has no tokens, being left out, has no score: such a passage
    is not listed, the list of such a question is empty.
    """

    code = 4
    gpu = True

    def __init__(
        self, *, cross: str, run: str, query_tokens: str, passage_tokens: str, depth: int,
        precision: Precision = "auto", recheck: Mapping[str, Any] | None = None,
        known: Sequence[str] = (), choices: str | None = None, gpu: bool | None = None,
    ) -> None:  # fmt: skip
        model = CrossEncoder.open(f"{cross}/model")
        self.score = Scorer(model, precision, Choices(choices), gpu)
        self.recheck: Recheck | None = None
        if recheck and self.score.passes.precision != "float32":
            self.recheck = Recheck(**recheck)
            # The first model has been changed to its precision, so float32 needs its own.
            self.exact = Scorer(CrossEncoder.open(f"{cross}/model"), gpu=gpu)
        self.assembler = Assembler(Tokenizer(model.tokenizer_folder))
        self.run = Version.open(run)
        self.queries, self.passages = TokenStore(query_tokens), TokenStore(passage_tokens)
        self.query_hashes = Hashes(query_tokens)
        self.passage_hashes = Hashes(passage_tokens)
        self.left_out_queries = Version.open(query_tokens).left_out
        self.left_out_passages = set(Version.open(passage_tokens).left_out.tolist())
        self.depth = depth
        mine = kind(self.score.passes.precision, recheck)
        self.known = PairScores([file for file in known if Path(file).parent.name == mine])

    def rows(self, item: int) -> np.ndarray:
        queries: np.ndarray = self.run.table(item)["query"].to_numpy()
        return queries

    def __call__(self, item: int, without: Sequence[int] = ()) -> Made:
        run = self.run.table(item)
        if self.left_out_passages:
            run = _without(run, self.left_out_passages)
        left_out = np.isin(self.rows(item), [*without, *self.left_out_queries])
        depths = np.where(left_out, 0, self.depth)
        lists = [
            row[:depth] for row, depth in zip(run["passages"].to_pylist(), depths, strict=True)
        ]
        sizes = np.array([len(row) for row in lists])
        queries = np.repeat(run["query"].to_numpy(), sizes)
        passages = np.array([p for row in lists for p in row], dtype=np.int64)
        query_hashes, passage_hashes = self.query_hashes[queries], self.passage_hashes[passages]
        ce_scores = self.known.find(query_hashes, passage_hashes)
        unknown = np.flatnonzero(np.isnan(ce_scores))
        first = _first_of_equals(query_hashes[unknown], passage_hashes[unknown])
        new = unknown[np.unique(first)]
        facts = {"pairs": len(passages), "known": len(passages) - len(new)}
        if len(new):
            ce_scores[new], counts = self._scores(queries[new], passages[new])
            ce_scores[unknown] = ce_scores[unknown[first]]
            facts |= counts
        facts["tokens"] = self._tokens(queries[new], passages[new])
        table = _scored(run, sizes, passages, ce_scores)
        pairs = as_pairs(query_hashes[new], passage_hashes[new], ce_scores[new])
        return Made({"table": table, "pairs": pairs}, len(run), facts)

    def _scores(self, queries: np.ndarray, passages: np.ndarray) -> tuple[np.ndarray, Counts]:
        """ce_scores of new pairs, and what was counted on the way."""
        ce_scores = self._ask(self.score, queries, passages)
        if self.recheck is None:
            return ce_scores, {}
        near = np.flatnonzero(self.recheck.near(ce_scores))
        if len(near):
            ce_scores[near] = self._ask(self.exact, queries[near], passages[near])
        drawn = sample(np.arange(len(queries)), SAMPLE, self.recheck.seed)
        exact = self._ask(self.exact, queries[drawn], passages[drawn])
        agreed = self.recheck.sides(ce_scores[drawn]) == self.recheck.sides(exact)
        return ce_scores, {
            "rechecked": len(near), "compared": len(drawn), "agreed": int(agreed.sum()),
        }  # fmt: skip

    def _tokens(self, queries: np.ndarray, passages: np.ndarray) -> int:
        pairs = self.queries, queries, self.passages, passages
        return int(self.score.lengths(self.assembler, *pairs).sum())

    def _ask(self, scorer: Scorer, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        return scorer(self.assembler, self.queries, queries, self.passages, passages)


class PairScores:
    """Pairs scored before, looked up by the hashes of their texts in one file after another: memory
    does not grow with what is known."""

    def __init__(self, files: Sequence[str]) -> None:
        # Files of the store are named by their sha256.
        wanted = {Path(file): Path(file).stem for file in files}
        if gone := wanted.keys() - set(fetch_all(wanted)):
            raise UserError(
                f"{socket.gethostname()} does not see {shown(min(gone))}: the folder of"
                " cluster.pairs must be on storage that every node sees under one path, or on"
                " object storage."
            )
        self.paths = list(wanted)

    def find(self, query_hashes: np.ndarray, passage_hashes: np.ndarray) -> np.ndarray:
        """ce_scores, float32; NaN where a pair is new. Of two for a pair the first counts."""
        found = np.full(len(query_hashes), np.nan, np.float32)
        queries, keys = np.unique(query_hashes), _mix(query_hashes, passage_hashes)
        for path in self.paths:
            pairs = np.asarray(open_array(path))
            if not _has_any(pairs["query_hash"], queries):
                continue
            theirs = _mix(pairs["query_hash"], pairs["passage_hash"])
            order = np.argsort(theirs, kind="stable")
            places = np.searchsorted(theirs, keys, sorter=order)
            places = order[np.minimum(places, len(order) - 1)]
            same = (theirs[places] == keys) & (pairs["passage_hash"][places] == passage_hashes)
            same &= np.isnan(found)
            found[same] = pairs["ce_score"][places[same]]
        return found


def _has_any(theirs: np.ndarray, queries: np.ndarray) -> bool:
    """Whether a file knows any of these queries. Most do not, and to ask takes milliseconds. Both
    are in order."""
    if not len(theirs):
        return False
    places = np.minimum(np.searchsorted(theirs, queries), len(theirs) - 1)
    return bool((theirs[places] == queries).any())


def kind(precision: str, recheck: Mapping[str, Any] | None) -> str:
    """The folder of a store for scores of one kind: read for others, they would not be what was
    asked for."""
    if recheck is None or precision == "float32":
        return precision
    return f"{precision}-{fingerprint(recheck)}"


class Hashes:
    """Hashes of a token store's texts by row, uint64: read from the blocks that hold them."""

    def __init__(self, tokens: str) -> None:
        self.version = Version.open(tokens)
        self.version.fetch("hashes")
        self.first_rows = np.array([block.first_row for block in self.version.blocks], np.int64)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        blocks = np.searchsorted(self.first_rows, rows, side="right") - 1
        found = np.empty(len(rows), np.uint64)
        for number in np.unique(blocks).tolist():
            mine = blocks == number
            hashes = self.version.array(number, "hashes")
            found[mine] = hashes[rows[mine] - self.first_rows[number]]
        return found


def _mix(query_hashes: np.ndarray, passage_hashes: np.ndarray) -> np.ndarray:
    # An odd constant (the golden ratio's) keeps (a, b) and (b, a) apart.
    mixed: np.ndarray = query_hashes ^ (passage_hashes * np.uint64(0x9E3779B97F4A7C15))
    return mixed


def _first_of_equals(query_hashes: np.ndarray, passage_hashes: np.ndarray) -> np.ndarray:
    """For each pair the place of the first one with its hashes, int64 [pairs]."""
    pairs = np.stack([query_hashes, passage_hashes], axis=1)
    _, first, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    places: np.ndarray = first[which.ravel()]  # numpy 2.0 gives it a second axis.
    return places


def _without(run: pa.Table, left_out: Container[int]) -> pa.Table:
    """A run that does not list some passages."""
    lists = zip(run["passages"].to_pylist(), run["scores"].to_pylist(), strict=True)
    kept = [[hit for hit in zip(*row, strict=True) if hit[0] not in left_out] for row in lists]
    columns = {
        "query": run["query"],
        "passages": [[passage for passage, _ in row] for row in kept],
        "scores": [[score for _, score in row] for row in kept],
    }
    return pa.table(columns, schema=RUN)


def as_pairs(
    query_hashes: np.ndarray, passage_hashes: np.ndarray, ce_scores: np.ndarray
) -> np.ndarray:
    """PAIRS, in the order of their hashes; of two scores for a pair the first stays first."""
    order = np.lexsort((passage_hashes, query_hashes))
    pairs = np.empty(len(order), PAIRS)
    pairs["query_hash"], pairs["passage_hash"] = query_hashes[order], passage_hashes[order]
    pairs["ce_score"] = ce_scores[order]
    return pairs


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
