"""One training step of each encoder: from rows of the global batch to gradients.

Both add the gradient of (the sum of this worker's rows' losses) / (rows of the global batch) to
the parameters' `.grad`; summed over workers it is the gradient of the global mean (see loss.py).
"""

# Shapes: R rows of the global batch, B rows on this worker, S passages of a row (the positive and
# its negatives), G columns (R * S), D embedding size.

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch

from rocketray.artifacts import Version
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.gather import gather, workers
from rocketray.model.grad_cache import GradCache
from rocketray.model.loss import contrastive_loss, pointwise_loss
from rocketray.model.masks import Known, Masks, known_positives
from rocketray.model.order import Shard, arrange, cut, share
from rocketray.model.tokens import Assembler, Batch, Tokenizer, TokenStore


@dataclass(frozen=True, eq=False)
class Examples:
    """Training examples as row numbers; column 0 of `passages_NS` is the positive."""

    queries_N: np.ndarray
    passages_NS: np.ndarray

    @classmethod
    def open(cls, path: str | Path) -> Examples:
        table = Version.open(path).read()
        counts = pc.unique(pc.list_value_length(table["negatives"])).to_pylist()
        if len(counts) != 1:
            raise ValueError(f"{path} needs rows, all with the same number of negatives: {counts}.")
        positives = table["positive"].to_numpy()
        negatives = pc.list_flatten(table["negatives"]).to_numpy().reshape(len(positives), -1)
        passages_NS = np.concatenate([positives[:, None], negatives], axis=1)
        return cls(table["query"].to_numpy(), passages_NS)

    @property
    def width(self) -> int:
        """S: passages of one example."""
        return int(self.passages_NS.shape[1])


@dataclass(frozen=True, eq=False)
class Feed:
    """Where token batches come from, and how they go through a model."""

    assembler: Assembler
    queries: TokenStore
    passages: TokenStore
    device: torch.device
    bfloat16: bool

    @classmethod
    def open(
        cls, tokenizer: Path, queries: Path, passages: Path, device: torch.device, *, bfloat16: bool
    ) -> Feed:
        assembler = Assembler(Tokenizer(tokenizer))
        return cls(assembler, TokenStore(queries), TokenStore(passages), device, bfloat16)

    def through(self, forward: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """The model's answer. Autocast ends here: losses and scores stay float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return forward({name: self._place(tensor) for name, tensor in batch.items()})

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # From pinned memory the copy does not wait for the kernels before it.
        return tensor.pin_memory().to(self.device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Tally:
    """What a worker knows of a step before the workers' gradients are summed."""

    loss: torch.Tensor
    """Scalar: this worker's part of the mean over the global batch."""
    tokens: int
    """On this worker, padding excluded."""
    masked: int
    """Columns masked in the whole global batch."""
    examples_R: np.ndarray
    """The global batch as it was arranged."""
    start: int
    """Where this worker's rows begin in it."""
    finite_B: torch.Tensor
    """bool: which of them the model turned into finite numbers."""


class Shares:
    """A global batch cut into shards, and the shards dealt to the workers."""

    def __init__(self, rows: int, micro_shard: int) -> None:
        self.rank, world = workers()
        shards = cut(rows, micro_shard)
        self._by_rank = [shards[share(len(shards), rank, world)] for rank in range(world)]
        self.sizes = [sum(shard.rows for shard in shards) for shards in self._by_rank]
        self.start = sum(self.sizes[: self.rank])
        self.stop = self.start + self.sizes[self.rank]

    @property
    def mine(self) -> list[Shard]:
        return self._by_rank[self.rank]


@dataclass(frozen=True, kw_only=True, eq=False)
class DualStep:
    """Contrastive: every query of the global batch against the passages of all workers."""

    model: DualEncoder
    feed: Feed
    examples: Examples
    known: Known | None
    micro_shard: int
    in_batch: int | None
    grad_cache: bool
    chunk: int
    seed: int

    @property
    def rows(self) -> int:
        return len(self.examples.queries_N)

    def negatives_per_query(self, global_batch: int) -> int:
        return min(self.in_batch or global_batch, global_batch) * self.examples.width - 1

    def __call__(self, step: int, examples_R: np.ndarray) -> Tally:
        order_R = arrange(self._lengths(examples_R), self.micro_shard)
        examples_R = examples_R[order_R]
        groups_R = order_R // self.in_batch if self.in_batch else None
        columns_G = self.examples.passages_NS[examples_R].ravel()
        masks = known_positives(
            self.examples.queries_N[examples_R], columns_G, self.known, groups_R
        )
        shares = Shares(len(examples_R), self.micro_shard)
        batches: dict[int, tuple[Batch, Batch]] = {}

        def forward(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
            # Assembled one by one, so that a GPU works on a shard while the next is prepared.
            if shard.number not in batches:
                batches[shard.number] = self._batches(examples_R, shard)
            queries, passages = batches[shard.number]
            torch.manual_seed(shard.seed(self.seed, step))
            q_BD = self.feed.through(self.model.embed_queries, queries)
            return q_BD, self.feed.through(self.model.embed_passages, passages)

        cache = GradCache(forward, shares.mine, self._empty(), recompute=self.grad_cache)
        loss = self._loss(cache, shares, masks) / len(examples_R)
        loss.backward()
        cache.backward()
        finite_B = cache.q_BD.isfinite().all(1)
        finite_B &= cache.p_BD.isfinite().all(1).view(-1, self.examples.width).all(1)
        tokens = _tokens(batch for pair in batches.values() for batch in pair)
        return Tally(loss.detach(), tokens, masks.count, examples_R, shares.start, finite_B)

    def _loss(self, cache: GradCache, shares: Shares, masks: Masks) -> torch.Tensor:
        width, device = self.examples.width, self.feed.device
        p_GD = gather(cache.p_BD, [size * width for size in shares.sizes])
        return contrastive_loss(
            cache.q_BD,
            p_GD,
            torch.arange(shares.start, shares.stop, device=device) * width,
            mask=lambda start, stop: masks.mask(shares.start + start, shares.start + stop, device),
            temperature=self.model.temperature,
            chunk=self.chunk,
        )

    def _batches(self, examples_R: np.ndarray, shard: Shard) -> tuple[Batch, Batch]:
        model, feed, rows = self.model, self.feed, examples_R[shard.start : shard.stop]
        queries_B, passages_B = (
            self.examples.queries_N[rows],
            self.examples.passages_NS[rows].ravel(),
        )
        queries = feed.assembler.queries(
            feed.queries, queries_B, model.query_length, model.query_prompt
        )
        passages = feed.assembler.passages(
            feed.passages, passages_B, model.passage_length, model.passage_prompt
        )
        return queries, passages

    def _lengths(self, examples_R: np.ndarray) -> np.ndarray:
        """The longest passage of each row: passages are where the time goes."""
        model, feed = self.model, self.feed
        lengths = feed.assembler.passage_lengths(
            feed.passages,
            self.examples.passages_NS[examples_R].ravel(),
            model.passage_length,
            model.passage_prompt,
        )
        longest: np.ndarray = lengths.reshape(len(examples_R), -1).max(axis=1)
        return longest

    def _empty(self) -> torch.Tensor:
        return next(self.model.parameters()).new_empty(0, self.model.size)


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossStep:
    """Pointwise: does this passage answer? Pair u is passage u % S of example u // S."""

    model: CrossEncoder
    feed: Feed
    examples: Examples
    micro_shard: int
    seed: int

    @property
    def rows(self) -> int:
        return self.examples.passages_NS.size

    def negatives_per_query(self, global_batch: int) -> int:
        return self.examples.width - 1

    def __call__(self, step: int, pairs_R: np.ndarray) -> Tally:
        examples_R, places_R = np.divmod(pairs_R, self.examples.width)
        queries_R = self.examples.queries_N[examples_R]
        passages_R = self.examples.passages_NS[examples_R, places_R]
        order_R = arrange(self._lengths(queries_R, passages_R), self.micro_shard)
        queries_R, passages_R, places_R = queries_R[order_R], passages_R[order_R], places_R[order_R]
        shares = Shares(len(pairs_R), self.micro_shard)
        loss = torch.zeros((), device=self.feed.device)
        finite, tokens = [torch.empty(0, dtype=torch.bool, device=self.feed.device)], 0
        for shard in shares.mine:
            rows = slice(shard.start, shard.stop)
            batch = self._batch(queries_R[rows], passages_R[rows])
            labels_B = torch.from_numpy(places_R[rows] == 0).to(self.feed.device)
            torch.manual_seed(shard.seed(self.seed, step))
            logits_B = self.feed.through(self.model.logits, batch)
            shard_loss = pointwise_loss(logits_B, labels_B) / len(pairs_R)
            shard_loss.backward()
            loss = loss + shard_loss.detach()
            finite.append(logits_B.detach().isfinite())
            tokens += _tokens([batch])
        return Tally(loss, tokens, 0, examples_R[order_R], shares.start, torch.cat(finite))

    def _batch(self, queries_B: np.ndarray, passages_B: np.ndarray) -> Batch:
        feed = self.feed
        return feed.assembler.pairs(
            feed.queries, queries_B, feed.passages, passages_B, self.model.length
        )

    def _lengths(self, queries_R: np.ndarray, passages_R: np.ndarray) -> np.ndarray:
        feed = self.feed
        return feed.assembler.pair_lengths(
            feed.queries, queries_R, feed.passages, passages_R, self.model.length
        )


def _tokens(batches: Iterable[Batch]) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)
