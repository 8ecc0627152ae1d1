"""What flows: the tables of rocketray, their columns and keys.

People's ids are strings (`qid`, `pid`) and live in `PASSAGES` and `QUERIES` only. Everywhere else
a query or a passage is its row number in those tables (int64), given once by ingest. Three numbers
have three names: a retriever's `score`, a cross-encoder's `ce_score` (a probability), and a
person's `relevance` (graded, as in TREC).

| table    | one row is            | key                       |
| -------- | --------------------- | ------------------------- |
| PASSAGES | a unit of retrieval   | row number: `passage`     |
| QUERIES  | a question            | row number: `query`       |
| QRELS    | one human judgement   | `query, passage`          |
| RUN      | a query's whole list  | `query`                   |
| SCORED   | RUN + `ce_scores`     | `query`                   |
| VERDICTS | SCORED + `verdicts`   | `query`                   |
| EXAMPLES | one training example  | `query, positive, copy`   |
| PAIRS    | one scored pair       | `query_hash, passage_hash`|
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from enum import StrEnum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PASSAGES = pa.schema([("pid", pa.string()), ("title", pa.string()), ("text", pa.string())])
"""Row number = position in the table; the manifest says where each block starts."""

QUERIES = pa.schema(
    [
        ("qid", pa.string()),
        ("text", pa.string()),
        ("labelled", pa.bool_()),
        ("answers", pa.list_(pa.string())),
    ]
)
"""`labelled`: some qrels file names the query. `answers`: strings that answer it, often none."""

QRELS = pa.schema(
    [("query", pa.int64()), ("passage", pa.int64()), ("relevance", pa.int32())],
)

RUN = pa.schema(
    [
        ("query", pa.int64()),
        ("passages", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float32())),
    ]
)
"""Best first; ties by row number. Lists are short where the corpus is smaller than k."""

SCORED = RUN.append(pa.field("ce_scores", pa.list_(pa.float32())))
VERDICTS = SCORED.append(pa.field("verdicts", pa.list_(pa.string())))

EXAMPLES = pa.schema(
    [
        ("query", pa.int64()),
        ("positive", pa.int64()),
        ("copy", pa.int32()),
        ("negatives", pa.list_(pa.int64())),
        ("source", pa.string()),
        ("ce_positive", pa.float32()),
        ("ce_negatives", pa.list_(pa.float32())),
    ]
)
"""Always exactly n negatives. A ce_score nobody computed is NaN."""

PAIRS = np.dtype([("query_hash", "<u8"), ("passage_hash", "<u8"), ("ce_score", "<f4")])
"""An array, memory-mapped: pairs are looked up and need no more room than these 20 bytes."""


class Verdict(StrEnum):
    """What became of one retrieved passage, and so why it is, or is not, a negative."""

    LABELLED_POSITIVE = "labelled_positive"
    """A person said so, or (recipe `nq`) it holds the answer string."""
    HARD_NEGATIVE = "hard_negative"
    """Retrieved, unlabelled, and the cross-encoder is sure that it is irrelevant."""
    LIKELY_FALSE_NEGATIVE = "likely_false_negative"
    """Retrieved, unlabelled, and the cross-encoder is sure that it is relevant: removed."""
    UNCERTAIN = "uncertain"
    """Between the two thresholds: removed from the negatives, and no positive either."""
    NEAR_POSITIVE = "near_positive"
    """Under the lower threshold, but too near the positive's score (`denoise.filter`): removed."""
    PSEUDO_POSITIVE = "pseudo_positive"
    """Best cross-encoder score of an unlabelled query, above the upper threshold; with
    `denoise.promote` any unlabelled passage of a labelled query above it."""


DENOISED = tuple(verdict.value for verdict in Verdict if verdict != Verdict.PSEUDO_POSITIVE)
"""What denoising says; the other is augment's, and that of `denoise.promote`."""


def likely_false(counts: Mapping[str, int]) -> int:
    """How many negatives went as likely false: those that `denoise.promote` made positives, too."""
    return counts[Verdict.LIKELY_FALSE_NEGATIVE] + counts.get(Verdict.PSEUDO_POSITIVE, 0)


def require(table: pa.Table, columns: Iterable[str], who: str) -> None:
    """Refuse a table that lacks a column, naming what is missing and what is there."""
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(f"{who} needs columns {missing}; the table has {table.column_names}.")


def positives_of(qrels: pa.Table) -> dict[int, list[int]]:
    """Passages with relevance above zero, by query, in the table's order."""
    return _by_query(qrels, qrels["relevance"].to_numpy() > 0)


def refused_of(qrels: pa.Table) -> dict[int, list[int]]:
    """Passages that a person has judged irrelevant, by query: relevance zero or below."""
    return _by_query(qrels, qrels["relevance"].to_numpy() <= 0)


def _by_query(qrels: pa.Table, chosen: np.ndarray) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    queries, passages = qrels["query"].to_numpy()[chosen], qrels["passage"].to_numpy()[chosen]
    for query, passage in zip(queries.tolist(), passages.tolist(), strict=True):
        found.setdefault(query, []).append(passage)
    return found


def held_out(stages: Container[str]) -> str | None:
    """Whose questions measure the models, by the names of a run's stages: those of test, or of dev
    where the data have no test (MS MARCO); None where they have neither."""
    return next((split for split in ("test", "dev") if f"qrels_{split}" in stages), None)


def with_verdicts(scored: pa.Table, verdicts: Sequence[Sequence[Verdict]]) -> pa.Table:
    """SCORED -> VERDICTS."""
    column = pa.array(verdicts, VERDICTS.field("verdicts").type)
    return scored.append_column("verdicts", column)


def count(verdicts: Sequence[Sequence[Verdict]]) -> dict[str, int]:
    """How many passages got which verdict; every verdict is named, zero included."""
    counted = Counter(verdict for row in verdicts for verdict in row)
    return {verdict.value: counted[verdict] for verdict in Verdict}


def text_hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of blake2b of each text."""
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


DRAWN_AT_ONCE = 1 << 20
"""Of ten million rows, the hashes and their order would take 500 megabytes."""


def sample(rows: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` of some row numbers, in ascending order, by a seeded hash of each.

    A row's luck depends on itself alone: adding rows elsewhere never changes who is drawn before.
    """
    rows = np.sort(rows)
    if limit is None or len(rows) <= limit:
        return rows
    drawn = rows[:0]
    for first in range(0, len(rows), DRAWN_AT_ONCE):
        some = np.concatenate([drawn, rows[first : first + DRAWN_AT_ONCE]])
        drawn = some[np.lexsort((some, _luck(some, seed)))[:limit]]
    return np.sort(drawn)


def _luck(rows: np.ndarray, seed: int) -> np.ndarray:
    """A 64-bit hash per row (the finaliser of splitmix64, Steele et al. 2014)."""
    x = rows.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
