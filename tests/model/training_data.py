"""A training set small enough to check by brute force: 20 queries, 40 passages, random words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rocketray.artifacts import Draft, commit_block
from rocketray.model import weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dev import Dev
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.job import Job
from rocketray.model.tokens import Tokenizer
from rocketray.schema import EXAMPLES, QRELS, SCORED

WORDS = [f"w{chr(97 + i)}{chr(97 + j)}" for i in range(4) for j in range(10)] + ["poison"]
QUERIES, PASSAGES, NEGATIVES = 20, 40, 2


class TrainingData:
    """Folders a `Job` names. Query i is answered by passage i; passage 7 alone holds "poison"."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.folder = folder
        self.base = weights.tiny(folder / "base", WORDS)
        lengths = random.integers(1, 12, PASSAGES)
        passages = [" ".join(random.choice(WORDS[:-1], n)) for n in lengths]
        passages[7] += " poison"
        titles = [WORDS[i % 40] if i % 3 == 0 else "" for i in range(PASSAGES)]
        queries = [" ".join([*passages[i].split()[:2], WORDS[i]]) for i in range(QUERIES)]
        tokenizer = Tokenizer(self.base)
        self.query_tokens = _version(folder, "queries", tokenizer.store_block(None, queries, 32))
        self.passage_tokens = _version(
            folder, "passages", tokenizer.store_block(titles, passages, 64)
        )
        self.qrels = _version(folder, "qrels", {"table": _qrels()})
        self.examples = _version(folder, "examples", {"table": _examples(random)})
        self.scored = _version(folder, "scored", {"table": _scored()})

    def dual(self, **settings: Any) -> Path:
        """Initial weights of a dual encoder; settings as for `DualEncoder.create`."""
        path = self.folder / "-".join(["dual", *(f"{k}_{v}" for k, v in settings.items())])
        if not path.exists():
            settings |= {"query_length": 16, "passage_length": 32}
            DualEncoder.create(self.base, **settings).save(path)
        return path

    def cross(self, **settings: Any) -> Path:
        path = self.folder / "-".join(["cross", *(f"{k}_{v}" for k, v in settings.items())])
        if not path.exists():
            CrossEncoder.create(self.base, length=40, **settings).save(path)
        return path

    def job(self, kind: Any, out: Path, weights: Path, **settings: Any) -> Job:
        defaults: dict[str, Any] = {
            "qrels": self.qrels,
            "epochs": 2,
            "global_batch": 10,
            "micro_shard": 3,
            "learning_rate": 1e-3,
            "log_path": out / "log.jsonl",
            "threads": 1,
        }
        return Job(
            kind=kind,
            out=out,
            weights=weights,
            examples=self.examples,
            query_tokens=self.query_tokens,
            passage_tokens=self.passage_tokens,
            **defaults | settings,
        )

    def dev(self) -> Dev:
        queries = np.arange(8)
        return Dev(
            queries=queries,
            relevant=[np.array([i, i + 20]) for i in queries],
            pool=np.arange(PASSAGES - 1, -1, -1),
            candidates=[np.arange(i, i + 15)[::-1].copy() for i in queries],
        )


def _qrels() -> pa.Table:
    """Query i is also answered by passage i + 1; i + 2 was judged, and is no answer."""
    rows = [
        (q, q + away, grade) for q in range(QUERIES) for away, grade in [(0, 2), (1, 1), (2, 0)]
    ]
    return pa.table([pa.array(column) for column in zip(*rows, strict=True)], schema=QRELS)


def _examples(random: np.random.Generator) -> pa.Table:
    negatives = [random.choice(np.arange(q + 2, q + 20), NEGATIVES) for q in range(QUERIES)]
    # Every third positive and every fifth negative was never scored.
    ce = random.random((QUERIES, 1 + NEGATIVES))
    ce[::3, 0] = ce[::5, 1] = np.nan
    columns = [
        range(QUERIES),
        range(QUERIES),
        [0] * QUERIES,
        [row.tolist() for row in negatives],
        ["labelled"] * QUERIES,
        ce[:, 0],
        ce[:, 1:].tolist(),
    ]
    arrays = [pa.array(list(c), field.type) for c, field in zip(columns, EXAMPLES, strict=True)]
    return pa.table(arrays, schema=EXAMPLES)


def _scored() -> pa.Table:
    """The cross-encoder finds that passage i + 3 answers query i, too, and i + 4 hardly."""
    columns = {
        "query": range(QUERIES),
        "passages": [[q + 4, q + 3] for q in range(QUERIES)],
        "scores": [[2.0, 1.0]] * QUERIES,
        "ce_scores": [[0.4, 0.95]] * QUERIES,
    }
    return pa.table({k: pa.array(list(v), SCORED.field(k).type) for k, v in columns.items()})


def _version(folder: Path, name: str, parts: dict[str, Any]) -> Path:
    draft = Draft(folder / name, name, {})
    rows = len(parts["table"]) if "table" in parts else len(parts["lengths"])
    commit_block(draft.path, 0, parts, rows=rows, key=name, facts={})
    return draft.finish({}).path
