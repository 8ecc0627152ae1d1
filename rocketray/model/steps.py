"""One training step of each encoder: from rows of the global batch to gradients.

Both add the gradient of (the sum of this worker's rows' losses) / (rows of the global batch) to
the parameters' `.grad`; summed over workers it is the gradient of the global mean (see loss.py).
"""

# Shapes: R rows of the global batch, B rows on this worker, S passages of a row (the positive and
# its negatives), G columns (R * S), V words of the vocabulary, D embedding size.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from rocketray.artifacts import Version
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.flops import BACKWARD, Flops
from rocketray.model.gather import gather, sum_over_workers, workers
from rocketray.model.grad_cache import GradCache
from rocketray.model.loss import (
    contrastive_loss,
    kl_loss,
    listwise_loss,
    margin_mse_loss,
    passage_loss,
    pointwise_loss,
)
from rocketray.model.masks import Known, Masks, known_positives
from rocketray.model.order import Shard, arrange, share
from rocketray.model.tokens import Assembler, Batch, Tokenizer, TokenStore, unmasked


@dataclass(frozen=True, eq=False)
class Examples:
    """Training examples as row numbers; column 0 of `passages_NS` is the positive."""

    queries_N: np.ndarray
    passages_NS: np.ndarray
    ce_NS: np.ndarray
    """float32: their ce_scores, NaN where nobody asked the cross-encoder."""

    @classmethod
    def open(cls, path: str | Path) -> Examples:
        table = Version.open(path).read()
        counts = pc.unique(pc.list_value_length(table["negatives"])).to_pylist()
        if len(counts) != 1:
            raise ValueError(f"{path} needs rows, all with the same number of negatives: {counts}.")
        positives = table["positive"].to_numpy()
        negatives = pc.list_flatten(table["negatives"]).to_numpy().reshape(len(positives), -1)
        passages_NS = np.concatenate([positives[:, None], negatives], axis=1)
        ce_negatives = pc.list_flatten(table["ce_negatives"]).to_numpy().reshape(negatives.shape)
        ce_NS = np.concatenate([table["ce_positive"].to_numpy()[:, None], ce_negatives], axis=1)
        return cls(table["query"].to_numpy(), passages_NS, ce_NS.astype(np.float32))

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
            return forward({n: self._place(tensor) for n, tensor in unmasked(batch).items()})

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # From pinned memory the copy does not wait for the kernels before it.
        return tensor.pin_memory().to(self.device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Tally:
    """What a worker knows of a step before the workers' gradients are summed."""

    sums: Mapping[str, torch.Tensor | float]
    """What adds up over workers; `loss` is this worker's part of the mean over the global batch."""
    masked: int
    """Columns masked by id in the whole global batch."""
    columns: int
    """Cells of rows and columns in the whole global batch, which `masked` is a share of."""
    examples_R: np.ndarray
    """The global batch as it was arranged."""
    start: int
    """Where this worker's rows begin in it."""
    finite_B: torch.Tensor
    """bool: which of them the model turned into finite numbers."""


class Shares:
    """The shards of a global batch, dealt to the workers."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.rank, world = workers()
        self._by_rank = [shards[share(len(shards), rank, world)] for rank in range(world)]
        self.sizes = [sum(shard.rows for shard in shards) for shards in self._by_rank]
        self.start = sum(self.sizes[: self.rank])
        self.stop = self.start + self.sizes[self.rank]

    @property
    def mine(self) -> Sequence[Shard]:
        return self._by_rank[self.rank]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a dual encoder is trained for: a weighted sum of losses (loss.py has the formulas)."""

    contrastive: float = 1.0
    kl: float = 0.0
    margin_mse: float = 0.0
    passage: float = 0.0
    margin: float | None = None
    """Mask columns that are more similar than the positive by more than this; None: none."""
    dimensions: tuple[int, ...] = ()
    """Matryoshka (arXiv 2205.13147): the mean over these leading parts of every embedding, so
    that each serves by itself. None named: the whole embedding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DualStep:
    """Contrastive: every query of the global batch against the passages of all workers."""

    model: DualEncoder
    feed: Feed
    examples: Examples
    known: Known | None
    objective: Objective
    micro_shard: int
    in_batch: int | None
    grad_cache: bool
    chunk: int
    seed: int
    keep: int = 1
    """Shards whose activations `grad_cache` keeps all the same, where memory has room."""
    tokens: int | None = None
    """A shard's passages take no more tokens than this, padding included; None: no limit."""

    @property
    def rows(self) -> int:
        return len(self.examples.queries_N)

    @property
    def units_per_row(self) -> int:
        """How many units of the global batch (examples) make a row of the order."""
        return 1

    def negatives_per_query(self, global_batch: int) -> int:
        return min(self.in_batch or global_batch, global_batch) * self.examples.width - 1

    def __call__(self, step: int, examples_R: np.ndarray) -> Tally:
        tokens = self.tokens // self.examples.width if self.tokens else None
        order_R, shards = arrange(self._lengths(examples_R), self.micro_shard, tokens)
        examples_R = examples_R[order_R]
        groups_R = order_R // self.in_batch if self.in_batch else None
        columns_G = self.examples.passages_NS[examples_R].ravel()
        masks = known_positives(
            self.examples.queries_N[examples_R], columns_G, self.known, groups_R
        )
        shares = Shares(shards)
        batches: dict[int, tuple[Batch, Batch]] = {}
        embed = self.model.embed_queries, self.model.embed_passages

        def forward(side: int, shard: Shard) -> torch.Tensor:
            # Assembled one by one, so that a GPU works on a shard while the next is prepared.
            if shard.number not in batches:
                batches[shard.number] = self._batches(examples_R, shard)
            torch.manual_seed(shard.seed(self.seed, step, side))
            return self.feed.through(embed[side], batches[shard.number][side])

        keep = self.keep if self.grad_cache else len(shares.mine)
        cache = GradCache(
            partial(forward, 0), partial(forward, 1), shares.mine, self._empty(), keep=keep
        )
        with exact_products():
            losses = self._losses(cache, shares, masks, self.examples.ce_NS[examples_R])
        (losses["loss"] / len(examples_R)).backward()
        cache.backward()
        sums: dict[str, torch.Tensor | float] = {
            name: value.detach() / len(examples_R) for name, value in losses.items()
        }
        sums["tokens"] = _tokens(batch for pair in batches.values() for batch in pair)
        sums["flops"] = self._flops(batches.values())
        finite_B = cache.q_BD.isfinite().all(1)
        finite_B &= cache.p_BD.isfinite().all(1).view(-1, self.examples.width).all(1)
        columns = _seen(len(examples_R), groups_R) * self.examples.width
        return Tally(sums, masks.count, columns, examples_R, shares.start, finite_B)

    def _losses(
        self, cache: GradCache, shares: Shares, masks: Masks, ce_RS: np.ndarray
    ) -> dict[str, torch.Tensor]:
        """Sums over this worker's rows: the loss, and what there is to watch."""
        told, width, device = self.objective, self.examples.width, self.feed.device
        p_GD = gather(cache.p_BD, [size * width for size in shares.sizes])
        places_B = torch.arange(shares.start, shares.stop, device=device) * width
        ce_BS = torch.from_numpy(ce_RS[shares.start : shares.stop]).to(device)
        settings: dict[str, Any] = {
            "mask": lambda start, stop: masks.mask(
                shares.start + start, shares.start + stop, device
            ),
            "temperature": self.model.temperature,
            "chunk": self.chunk,
        }
        sizes = told.dimensions or (p_GD.shape[1],)
        loss, contrast = p_GD.new_zeros(()), None
        for size in sizes:
            q_BD, columns_GD = self._cut(cache.q_BD, size), self._cut(p_GD, size)
            if told.contrastive:
                contrast = contrastive_loss(
                    q_BD, columns_GD, places_B, margin=told.margin, **settings
                )
                loss = loss + told.contrastive * contrast.loss
            if told.passage:
                loss = loss + told.passage * passage_loss(q_BD, columns_GD, places_B, **settings)
            if told.kl or told.margin_mse:
                own_BSD = self._cut(cache.p_BD, size).view(len(q_BD), width, size)
                similarities_BS = torch.einsum("bd,bsd->bs", q_BD, own_BSD)
                for weight, distil in ((told.kl, kl_loss), (told.margin_mse, margin_mse_loss)):
                    if weight:
                        term = distil(similarities_BS, ce_BS, temperature=self.model.temperature)
                        loss = loss + weight * term
        watched = contrast._asdict() if contrast else {}  # Of the last and largest dimension.
        return {**watched, "loss": loss / len(sizes)}

    def _cut(self, e_BD: torch.Tensor, size: int) -> torch.Tensor:
        """The leading part of embeddings; of length one again when the similarity is cosine."""
        if size == e_BD.shape[1]:
            return e_BD
        part_BD = e_BD[:, :size]
        return F.normalize(part_BD, dim=-1) if self.model.similarity == "cosine" else part_BD

    def worst_case(self, rows: int) -> torch.Tensor:
        """Forward a shard of `rows` examples of the greatest length; a sum to differentiate."""
        model, width = self.model, self.examples.width
        queries = _longest_batch(self.feed, rows, model.query_length)
        passages = _longest_batch(self.feed, rows * width, model.passage_length)
        q_BD = self.feed.through(model.embed_queries, queries)
        return q_BD.sum() + self.feed.through(model.embed_passages, passages).sum()

    def _flops(self, batches: Iterable[tuple[Batch, Batch]]) -> float:
        return BACKWARD * sum(
            counter.forward(batch["attention_mask"])
            for pair in batches
            for counter, batch in zip(self._counters, pair, strict=True)
        )

    @cached_property
    def _counters(self) -> list[Flops]:
        model = self.model
        return [
            Flops(tower, first_token=model.reads_first_token_only)
            for tower in (model.query, model.passage)
        ]

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
    """Does this passage answer? Pair u is passage u % S of example u // S.

    Pointwise, a row of the order is a pair. Listwise it is an example, all S pairs of it.
    """

    model: CrossEncoder
    feed: Feed
    examples: Examples
    listwise: bool
    adversarial: float
    """Length of the step that moves the word embeddings against the model; 0: none."""
    micro_shard: int
    """Pairs."""
    seed: int
    tokens: int | None = None
    """A shard's pairs take no more tokens than this, padding included; None: no limit."""

    @property
    def rows(self) -> int:
        return self.examples.passages_NS.size // self.units_per_row

    @property
    def units_per_row(self) -> int:
        """How many units of the global batch (pairs) make a row of the order."""
        return self.examples.width if self.listwise else 1

    def negatives_per_query(self, global_batch: int) -> int:
        return self.examples.width - 1

    def __call__(self, step: int, rows_R: np.ndarray) -> Tally:
        each = self.units_per_row
        micro_rows = max(1, self.micro_shard // each)
        tokens = self.tokens // each if self.tokens else None
        order_R, shards = arrange(self._lengths(rows_R), micro_rows, tokens)
        rows_R, shares = rows_R[order_R], Shares(shards)
        batches: dict[int, tuple[Batch, torch.Tensor]] = {}

        def batch_of(shard: Shard) -> tuple[Batch, torch.Tensor]:
            # Assembled one by one, so that a GPU works on a shard while the next is prepared.
            if shard.number not in batches:
                batches[shard.number] = self._batch(rows_R[shard.start : shard.stop])
            return batches[shard.number]

        loss = torch.zeros((), device=self.feed.device)
        finite = [torch.empty(0, dtype=torch.bool, device=self.feed.device)]
        with self._perturbed(map(batch_of, shares.mine), len(rows_R)):
            for shard in shares.mine:
                batch, labels_B = batch_of(shard)
                torch.manual_seed(shard.seed(self.seed, step))
                logits_B = self.feed.through(self.model.logits, batch)
                shard_loss = self._loss(logits_B, labels_B) / len(rows_R)
                shard_loss.backward()
                loss = loss + shard_loss.detach()
                finite.append(logits_B.detach().isfinite())
        sums: dict[str, torch.Tensor | float] = {
            "loss": loss,
            "tokens": _tokens(batch for batch, _ in batches.values()),
            "flops": self._flops(batch for batch, _ in batches.values()),
        }
        examples_R = self._pairs(rows_R)[0]
        return Tally(sums, 0, 0, examples_R, shares.start * each, torch.cat(finite))

    def _loss(self, logits_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        if self.listwise:
            return listwise_loss(logits_B.view(-1, self.examples.width))
        return pointwise_loss(logits_B, labels_B)

    @contextmanager
    def _perturbed(
        self, batches: Iterable[tuple[Batch, torch.Tensor]], rows: int
    ) -> Iterator[None]:
        """Word embeddings moved a step of length `adversarial` up the loss, and put back after.

        RocketQA's released code does so (not its paper; the idea is that of arXiv 1605.07725): the
        gradient by the embedding table, without dropout, sets the direction. Here it is that of
        the global batch, and so does not depend on the workers.
        """
        if not self.adversarial:
            yield
            return
        table_VD = self.model.model.get_input_embeddings().weight
        direction_VD = torch.zeros_like(table_VD)
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = True  # In eval it would keep all activations; dropout stays out.
        for batch, labels_B in batches:
            loss = self._loss(self.feed.through(self.model.logits, batch), labels_B) / rows
            direction_VD += torch.autograd.grad(loss, table_VD)[0]
        self.model.train()
        sum_over_workers(direction_VD)
        before_VD = table_VD.detach().clone()
        length = torch.linalg.vector_norm(direction_VD).clamp(min=1e-12)
        with torch.no_grad():
            table_VD.add_(direction_VD, alpha=float(self.adversarial / length))
        try:
            yield
        finally:
            with torch.no_grad():
                table_VD.copy_(before_VD)

    def worst_case(self, pairs: int) -> torch.Tensor:
        """Forward a shard of about `pairs` pairs of the greatest length; a sum to differentiate."""
        whole = max(1, pairs // self.units_per_row) * self.units_per_row
        batch = _longest_batch(self.feed, whole, self.model.length)
        return self.feed.through(self.model.logits, batch).sum()

    def _flops(self, batches: Iterable[Batch]) -> float:
        # The adversarial pass needs no gradient by weights: two forwards more.
        passes = BACKWARD + (2 if self.adversarial else 0)
        return passes * sum(self._counter.forward(batch["attention_mask"]) for batch in batches)

    @cached_property
    def _counter(self) -> Flops:
        return Flops(self.model.model, first_token=self.model.reads_first_token_only)

    def _pairs(self, rows_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of rows of the order: the example of every pair, and its place there."""
        each = self.units_per_row
        pairs = (rows_R[:, None] * each + np.arange(each)).ravel()
        examples, places = np.divmod(pairs, self.examples.width)
        return examples, places

    def _texts(self, examples: np.ndarray, places: np.ndarray) -> tuple[Any, ...]:
        """What the assembler lays out, or measures, for some pairs."""
        queries, passages = self.examples.queries_N[examples], self.examples.passages_NS
        return (
            self.feed.queries, queries, self.feed.passages, passages[examples, places],
            self.model.length,
        )  # fmt: skip

    def _batch(self, rows_R: np.ndarray) -> tuple[Batch, torch.Tensor]:
        """Pairs and their labels."""
        examples, places = self._pairs(rows_R)
        batch = self.feed.assembler.pairs(*self._texts(examples, places))
        return batch, torch.from_numpy(places == 0).to(self.feed.device)

    def _lengths(self, rows_R: np.ndarray) -> np.ndarray:
        """The longest pair of each row."""
        lengths = self.feed.assembler.pair_lengths(*self._texts(*self._pairs(rows_R)))
        longest: np.ndarray = lengths.reshape(len(rows_R), -1).max(axis=1)
        return longest


def _longest_batch(feed: Feed, rows: int, length: int) -> Batch:
    """As many tokens as `rows` texts can have."""
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if feed.assembler.tokenizer.makes_types else []
    batch = {name: torch.zeros(rows, length, dtype=torch.int64) for name in names}
    return batch | {"attention_mask": torch.ones(rows, length, dtype=torch.int64)}


def _seen(rows: int, groups_R: np.ndarray | None) -> int:
    """Cells of rows and rows whose passages they see: all, or those of their own group."""
    if groups_R is None:
        return rows * rows
    return int(np.square(np.bincount(groups_R)).sum())


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 in the loss: it has ten bits of a similarity that is divided by a temperature."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _tokens(batches: Iterable[Batch]) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)
