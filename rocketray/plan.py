"""What a recipe will do, stage by stage: rows, blocks, operations, bytes.

A run prints rows and blocks before it trains; `forecast` makes time and money of the others.

Operations are floating-point operations of real tokens: for each token 2 a weight of the layers,
and 4 * layers * width for each two tokens of one text; what `first_token` skips does not count
(`model/flops.py`). Training costs 3 forwards, one more with grad_cache, one more with recompute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from rich.table import Table

from rocketray.model.flops import BACKWARD, of_forward
from rocketray.model.order import steps_of
from rocketray.preparation import Ready
from rocketray.recipe import DualStep, FirstStep, HardStep, Recipe
from rocketray.retrieval import list_depths

Effort = Literal[
    "ingest", "tokenise", "encode", "search", "score", "lexical", "train_dual", "train_cross"
]
"""What is counted, and what a machine has a rate of: rows; tokens; floating-point operations of
encoding, of similarities, of scoring; BM25's questions times passages; operations of training."""

TEXT_BYTES = 5
"""Of text, a token."""
RUN_BYTES = 12
"""Of a passage in a question's list: row number and score."""
PAIR_BYTES = 20
"""Of a scored pair: two hashes and a score."""
COPIES = 2
"""Of a trained model that stay: the stage's, and the one for people. Checkpoints are removed."""


@dataclass(frozen=True)
class Counts:
    """Of a data set, or of what a recipe uses of it."""

    passages: int
    train: int
    labels: int
    """Relevant passages of the training questions."""
    dev: int = 0
    test: int = 0
    unlabelled: int = 0
    query_tokens: float = 12
    """Mean over questions, special tokens included; so of passages."""
    passage_tokens: float = 80
    pseudo: float = 0.5
    """Share of the unlabelled questions that will become examples: nobody knows before."""

    @property
    def pair_tokens(self) -> float:
        return self.query_tokens + self.passage_tokens - 1

    def under(self, recipe: Recipe) -> Counts:
        """What a recipe uses of it: hidden labels, and its limits."""
        hidden = min(round(recipe.data.hide_labels * self.train), self.train - 1)
        train = _at_most(self.train - hidden, recipe.data.labelled)
        return replace(
            self,
            train=train,
            labels=round(self.labels * train / self.train),
            dev=_at_most(self.dev, recipe.evaluate.dev_queries),
            test=_at_most(self.test or self.dev, recipe.evaluate.queries),
            unlabelled=_at_most(self.unlabelled + hidden, recipe.augment.queries),
        )


def _at_most(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


@dataclass(frozen=True)
class Shape:
    """Of an encoder: what its operations and bytes follow from."""

    layers: int
    width: int
    inner: int
    vocabulary: int = 30_522
    first_token: bool = False
    """Of the last layer only the first token is computed."""

    @property
    def weights(self) -> int:
        """Of the layers' matrices."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def parameters(self) -> int:
        return self.weights + self.vocabulary * self.width

    def operations(self, tokens: float) -> float:
        """Of one text's forward pass."""
        return of_forward(
            self.weights, self.layers, self.width, rows=1, tokens=tokens, squares=tokens**2,
            first_token=self.first_token,
        )  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One stage of a run."""

    stage: str
    """Its name in the run's folder and timings."""
    rows: int
    unit: str
    efforts: Mapping[Effort, float]
    blocks: int = 0
    """0: it trains."""
    words: str = ""
    steps: int = 0
    shards: int = 0
    """Of a training step: no more workers than these have something to do."""
    sent: float = 0.0
    """Bytes of a training step that all-reduce and all-gather move, for many workers."""
    reads: float = 0.0
    """Bytes that a machine brings before it can begin, where storage is shared."""
    writes: float = 0.0


@dataclass(frozen=True)
class Task:
    """What is to be done, whatever the machines."""

    recipe: Recipe
    counts: Counts
    dual: Shape
    cross: Shape

    def works(self) -> list[Work]:
        """Every stage that takes time, in a run's order."""
        return list(self._works())

    def _works(self) -> Iterator[Work]:
        told, counts = self.recipe, self.counts
        yield from self.texts()
        if self.lexical_training:
            yield self.lexical("train", counts.train)
        yield self.dual_step("dual_0", counts.labels * told.steps.dual_0.copies)
        yield from (self.encode(name) for name in ("initial", "dual_0"))
        yield from self.searches("initial", ["test"])
        yield from self.searches("dual_0", ["train", "dev", "test"])
        yield self.cross_step()
        finder, rounds = "dual_0", told.denoise.in_rounds("dual_1")
        for name in rounds:
            asked = "unlabelled" if name == rounds[-1] else "train"
            if not told.denoise.off:
                yield self.score(f"{finder}_train_scored", counts.train, told.denoise.depth)
            yield self.dual_step(name, counts.labels * told.steps.dual_1.copies)
            yield self.encode(name)
            yield from self.searches(name, [asked, "test"])
            finder = name
        if counts.unlabelled:
            depth = told.augment.depth
            yield self.score(f"{finder}_unlabelled_scored", counts.unlabelled, depth)
        learned = counts.labels + round(counts.pseudo * counts.unlabelled)
        if counts.unlabelled or told.steps.dual_2 != told.steps.dual_1:  # Else a copy of dual_1.
            yield self.dual_step("dual_2", learned * told.steps.dual_2.copies)
        yield self.encode("dual_2")
        yield from self.searches("dual_2", ["test"])
        if counts.test and told.evaluate.rerank:
            yield self.score("dual_2_test_scored", counts.test, told.evaluate.rerank)
        if counts.test and told.evaluate.bm25:
            yield self.lexical("test", counts.test)

    @property
    def lexical_training(self) -> bool:
        """Whether BM25 searches for the training questions."""
        return self.recipe.steps.dual_0.negatives == "bm25" or self.recipe.denoise.pool != "dual_0"

    def lexical(self, purpose: str, questions: int) -> Work:
        efforts: dict[Effort, float] = {"lexical": float(questions * self.counts.passages)}
        return Work(f"bm25_{purpose}", questions, "questions", efforts,
                    self._query_blocks(purpose), "BM25", reads=self._text_bytes)  # fmt: skip

    # ---- texts

    def texts(self) -> Iterator[Work]:
        counts = self.counts
        questions = counts.train + counts.dev + counts.test + counts.unlabelled
        for table, one, rows, tokens in (
            ("queries", "query", questions, counts.query_tokens),
            ("passages", "passage", counts.passages, counts.passage_tokens),
        ):
            blocks = math.ceil(rows / getattr(self.recipe.blocks, table))
            yield Work(table, rows, table, {"ingest": rows}, blocks,
                       writes=rows * tokens * TEXT_BYTES)  # fmt: skip
            yield Work(f"{one}_tokens", rows, table, {"tokenise": rows * tokens}, blocks,
                       writes=rows * tokens * self._id_bytes)  # fmt: skip

    @property
    def _id_bytes(self) -> int:
        return 2 if self.dual.vocabulary < 2**16 else 4

    @property
    def _text_bytes(self) -> float:
        return self.counts.passages * self.counts.passage_tokens * TEXT_BYTES

    @property
    def token_bytes(self) -> float:
        """Of the corpus, on every node that scores or trains."""
        return self.counts.passages * self.counts.passage_tokens * self._id_bytes

    @property
    def embedding_bytes(self) -> float:
        """Of the corpus by one model."""
        wide = 2 if self.recipe.encode.storage == "float16" else 4
        return self.counts.passages * self.dual.width * wide

    def _query_blocks(self, purpose: str) -> int:
        rows: int = getattr(self.counts, purpose)
        return math.ceil(rows / self.recipe.blocks.queries)

    # ---- models

    def encode(self, name: str) -> Work:
        rows = self.counts.passages
        efforts: dict[Effort, float] = {"encode": rows * self._passage}
        blocks = math.ceil(rows / self.recipe.blocks.passages)
        return Work(f"{name}_embeddings", rows, "passages", efforts, blocks,
                    "encode", writes=self.embedding_bytes)  # fmt: skip

    def searches(self, name: str, purposes: list[str]) -> Iterator[Work]:
        told = self.recipe
        depths = list_depths(told)
        groups = math.ceil(self.counts.passages / told.blocks.passage_group)
        for purpose in purposes:
            rows = getattr(self.counts, purpose)
            if rows:
                products = 2.0 * rows * self.counts.passages * self.dual.width
                efforts: dict[Effort, float] = {"encode": rows * self._query, "search": products}
                yield Work(f"{name}_{purpose}", rows, "questions", efforts,
                           self._query_blocks(purpose) * groups, f"top {depths[purpose]:,}",
                           reads=self.embedding_bytes,
                           writes=rows * depths[purpose] * RUN_BYTES)  # fmt: skip

    def score(self, stage: str, questions: int, depth: int) -> Work:
        pairs = questions * depth
        efforts: dict[Effort, float] = {"score": pairs * self._pair}
        blocks = math.ceil(questions / self.recipe.blocks.queries)
        return Work(stage, pairs, "pairs", efforts, blocks, f"score {depth} each",
                    reads=self.token_bytes, writes=pairs * (PAIR_BYTES + RUN_BYTES))  # fmt: skip

    def dual_step(self, name: str, rows: int) -> Work:
        told: FirstStep | HardStep = self.recipe.steps.of(name)
        beside = int(told.negatives != "none") if isinstance(told, FirstStep) else told.negatives
        steps, batch = steps_of(rows, told.global_batch, told.epochs), told.global_batch
        forwards = BACKWARD + told.grad_cache + told.recompute
        row = forwards * (self._query + (1 + beside) * self._passage)
        loss = 6.0 * batch * (1 + beside) * self.dual.width
        efforts: dict[Effort, float] = {"train_dual": steps * batch * (row + loss)}
        efforts["encode"] = self._dev(told)
        towers = 2 if self.recipe.model.dual.towers == "two" else 1
        gathered = 4.0 * batch * (1 + beside) * self.dual.width
        return self._training(name, told, rows, "questions", efforts, steps,
                              towers * self.dual.parameters, gathered)  # fmt: skip

    def _dev(self, told: DualStep) -> float:
        if not self.counts.dev:
            return 0.0
        pool = min(self.counts.passages, self.recipe.evaluate.dev_passages or self.counts.passages)
        return told.evaluations * (pool * self._passage + self.counts.dev * self._query)

    def cross_step(self) -> Work:
        told = self.recipe.steps.cross
        share = min(1.0, (told.queries or self.counts.train) / max(1, self.counts.train))
        pairs = round(self.counts.labels * share) * (1 + told.negatives)
        steps = steps_of(pairs, told.global_batch, told.epochs)
        forwards = BACKWARD + told.recompute + (2 if told.adversarial else 0)
        efforts: dict[Effort, float] = {
            "train_cross": steps * told.global_batch * forwards * self._pair,
            "score": told.evaluations * self.counts.dev * self.recipe.evaluate.dev_rerank
            * self._pair,
        }  # fmt: skip
        return self._training(
            "cross", told, pairs, "pairs", efforts, steps, self.cross.parameters, 0.0
        )

    def _training(
        self, name: str, told: Any, rows: int, unit: str, efforts: Mapping[Effort, float],
        steps: int, parameters: int, gathered: float,
    ) -> Work:  # fmt: skip
        return Work(
            name, rows, unit, efforts, steps=steps,
            words=f"{told.epochs:g} epochs of {told.global_batch:,}",
            shards=math.ceil(told.global_batch / told.micro_shard),
            # Around a ring, each worker sends twice what is reduced, and what is gathered twice:
            # there in the forward pass, and back in backward.
            sent=2 * (4.0 * parameters + gathered),
            reads=self.token_bytes,
            writes=COPIES * 4.0 * parameters,
        )  # fmt: skip

    @property
    def _query(self) -> float:
        return self.dual.operations(self.counts.query_tokens)

    @property
    def _passage(self) -> float:
        return self.dual.operations(self.counts.passage_tokens)

    @property
    def _pair(self) -> float:
        return self.cross.operations(self.counts.pair_tokens)


# ----------------------------------------------------------------------- what a run prints of it


def table(recipe: Recipe, ready: Ready) -> Table:
    """What is to come, as far as it can be known: pseudo labels are not counted."""
    actors, workers = recipe.cluster.bulk.actors, recipe.cluster.train.workers
    bulk = "this process" if actors == 0 else f"{actors or 'all CPUs'}"
    train = "this process" if workers == 0 else f"{workers or 'one on each GPU, else two'}"
    title = f"plan (workers: bulk stages {bulk}, training {train})"
    shown = Table(title=title, title_justify="left")
    for name in ("stage", "how", "rows", "blocks"):
        left = name in ("stage", "how")
        shown.add_column(name, justify="left" if left else "right", no_wrap=True)
    nothing = Shape(1, 1, 1)
    for work in Task(recipe, counts_of(ready), nothing, nothing).works():
        if not work.efforts.keys() & {"ingest", "tokenise"}:  # They are done by now.
            rows = f"{work.rows:,} {work.unit}"
            shown.add_row(work.stage, work.words, rows, f"{work.blocks or ''}")
    return shown


def counts_of(ready: Ready) -> Counts:
    """Of what was ingested."""
    chosen = ready.tables.chosen
    asked = chosen["train"].read()["query"].to_numpy()
    judged = ready.tables.qrels["train"].read()
    relevant = judged["relevance"].to_numpy() > 0
    labels = int((np.isin(judged["query"].to_numpy(), asked) & relevant).sum())
    purposes = {
        name: chosen[name].rows if name in chosen else 0
        for name in ("train", "dev", "test", "unlabelled")
    }
    return Counts(ready.tables.passages.rows, labels=labels, pseudo=0.0, **purposes)
