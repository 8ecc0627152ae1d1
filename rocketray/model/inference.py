"""Models over many rows: batches by token budget, results in row order, NaN refused.

What is in a batch depends on the rows alone, never on who computes it. BERT-like models run
without padding (packed.py); others in padded batches of alike lengths, where the padding of sorted
rows is a few tokens in a thousand.
"""

# Shapes: R rows asked for, B rows of one batch, N tokens of all of them, D embedding size.

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rocketray import storage
from rocketray.artifacts import canonical, read_json, write_json
from rocketray.errors import UserError
from rocketray.model import int8, packed
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.machine import is_out_of_memory
from rocketray.model.tokens import Assembler, Batch, TokenStore, batches_by_budget, unmasked

log = logging.getLogger(__name__)

# Tokens in one forward pass, padding included. On a CPU small batches stay in the cache; a GPU
# wants enough work to hide its launches.
CPU_TOKENS = 2048
GPU_TOKENS = 65536

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
"""Of the encoder's products and activations. Heads, pooling and results are float32."""
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def device(gpu: bool | None = None) -> torch.device:
    """Where a model computes: on a GPU, where there is one.

    Args:
        gpu: true must have one; false leaves to others those that this process can see.

    Raises:
        UserError: torch cannot use the GPU that this process was given.
    """
    if gpu is not False and torch.cuda.is_available():
        return torch.device("cuda", 0)  # Ray shows a worker its own alone.
    if gpu:
        cuda = torch.version.cuda
        needs = f"NVIDIA's driver for CUDA {cuda} or later" if cuda else "a torch built with CUDA"
        raise UserError(
            f"torch finds no GPU on {socket.gethostname()}, where one was asked for: it needs"
            f" {needs} there. Or set cluster.bulk.gpus=false and cluster.train.gpus=false."
        )
    return torch.device("cpu")


def choose_precision(place: torch.device) -> Precision:
    """What `auto` becomes: half precision on a GPU, float32 on a CPU.

    Never by measuring, as training does: many nodes compute one table, and its bytes must not tell
    which of them made a block.
    """
    if place.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


class Choices:
    """What the workers of a stage chose, in one file: the others and a resume choose the same.

    Without a file it is remembered as long as this object lives.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path else None
        self.known: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        if self.path and storage.fetch(self.path):
            self.known = dict(read_json(self.path))
        return self.known

    def note(self, **choices: Any) -> None:
        self.known = self.read() | choices
        if self.path:
            write_json(self.path, self.known)

    def begin(self, **choices: Any) -> dict[str, Any]:
        """The first worker's choices: these, where nobody has chosen yet."""
        if self.path:
            storage.create(self.path, canonical(choices))  # Of two at once only one succeeds.
        return choices | self.read()


class Passes:
    """Forward passes of one model over many rows."""

    def __init__(
        self, told: Precision = "float32", choices: Choices | None = None, gpu: bool | None = None
    ) -> None:
        self.place = device(gpu)
        self.choices = choices or Choices()
        self.precision: Precision = told
        if told == "auto":
            chosen = self.choices.begin(precision=choose_precision(self.place))
            self.precision = chosen["precision"]
        if self.precision == "int8" and self.place.type != "cpu":
            raise UserError("Precision int8 is for CPUs. Set auto: a GPU is faster in bfloat16.")

    def prepare(self, model: nn.Module, encoder: PreTrainedModel) -> None:
        """Bring a model to its place, and its encoder into this precision (in place)."""
        model.to(self.place).eval()
        if self.precision == "int8":
            if not int8.is_fast():
                log.warning("This processor has no fast 8-bit products: int8 gains nothing here.")
                self.choices.note(int8_gains=False)
            int8.quantise(encoder)
        elif self.precision in HALVES and packed.supports(encoder):
            for part in (encoder.embeddings, encoder.encoder):  # Not a pooler: heads are float32.
                part.to(HALVES[self.precision])

    def padded(self, forward: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """An encoder that is not packed: autocast knows what each architecture needs."""
        half = HALVES.get(self.precision)
        on_device = {n: packed.moved(x, self.place) for n, x in unmasked(batch).items()}
        with torch.autocast(self.place.type, half, enabled=half is not None):
            return forward(on_device)

    def over(
        self,
        assemble: Callable[[np.ndarray], Batch],
        forward: Callable[[Batch], torch.Tensor],
        lengths_R: np.ndarray,
        rows_R: np.ndarray,
        what: str,
    ) -> np.ndarray:
        """Results of all rows, float32 [R, ...], from those of batches.

        Nothing waits for a GPU before the last batch is on its way. When memory runs out, fewer
        tokens go at once from there on, and half as many as before in the blocks that follow.

        Raises:
            UserError: NaN or infinity, or a row that does not fit by itself; both name rows.
        """
        budget = self.choices.read().get("tokens") or self._default_tokens
        waiting = deque(batches_by_budget(lengths_R, budget))
        done: list[np.ndarray] = []
        found: list[torch.Tensor] = []
        while waiting:
            values = self._try(lambda chosen: forward(assemble(chosen)), waiting[0])
            if values is not None:
                found.append(values)
                done.append(waiting.popleft())
                continue
            budget = self._fewer(budget, lengths_R, rows_R, waiting[0], what)
            rest = np.concatenate(waiting)
            waiting = deque(rest[b] for b in batches_by_budget(lengths_R[rest], budget))
        if not found:
            return np.empty(0, np.float32)
        values_R = torch.cat(found).float().cpu().numpy()
        result = np.empty_like(values_R)
        result[np.concatenate(done)] = values_R
        _refuse_nan(result, rows_R, what)
        return result

    @property
    def _default_tokens(self) -> int:
        return GPU_TOKENS if self.place.type == "cuda" else CPU_TOKENS

    def _try(
        self, forward: Callable[[np.ndarray], torch.Tensor], chosen: np.ndarray
    ) -> torch.Tensor | None:
        """None where memory runs out; by then all that the pass held is free again."""
        try:
            with torch.inference_mode():
                return forward(chosen)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if self.place.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _fewer(
        self, budget: int, lengths_R: np.ndarray, rows_R: np.ndarray, chosen: np.ndarray, what: str
    ) -> int:
        """Half the budget, and half again until it parts the batch that did not fit.

        Other blocks get one halving: a small batch that fails at a bad moment says little of them.
        """
        longest = int(lengths_R[chosen].max())
        if len(chosen) == 1:
            raise UserError(
                f"Row {rows_R[chosen[0]]} of the {what} table ({longest} tokens) does not fit the"
                f" memory of {self.place} by itself. Allow fewer tokens, or take a smaller model."
            )
        tokens = len(chosen) * longest
        fewer: int = min(budget // 2, self.choices.read().get("tokens", budget))
        self.choices.note(tokens=fewer)
        while fewer >= tokens:
            fewer //= 2
        log.warning(f"{tokens:,} tokens at once do not fit the memory: from here on {fewer:,}.")
        return fewer


class Encoder:
    """One side of a dual encoder, ready for many rows. The model is changed in place."""

    def __init__(
        self,
        model: DualEncoder,
        side: Literal["query", "passage"],
        precision: Precision = "float32",
        choices: Choices | None = None,
        gpu: bool | None = None,
    ) -> None:
        self.model, self.side = model, side
        self.tower, self.how = (
            (model.query, (model.query_length, model.query_prompt))
            if side == "query"
            else (model.passage, (model.passage_length, model.passage_prompt))
        )
        self.passes = Passes(precision, choices, gpu)
        self.passes.prepare(model, self.tower)

    def __call__(self, assembler: Assembler, store: TokenStore, rows: np.ndarray) -> np.ndarray:
        """Embeddings of rows of a token store, float32 [R, D]."""
        lay_out = assembler.queries if self.side == "query" else assembler.passages
        return self.passes.over(
            lambda chosen: lay_out(store, rows[chosen], *self.how),
            self.embed,
            self.lengths(assembler, store, rows),
            rows,
            self.side,
        )

    def lengths(self, assembler: Assembler, store: TokenStore, rows: np.ndarray) -> np.ndarray:
        """Tokens that the model reads of each row, special ones and prompt included, int64 [R]."""
        measure = assembler.query_lengths if self.side == "query" else assembler.passage_lengths
        return measure(store, rows, *self.how)

    def embed(self, batch: Batch) -> torch.Tensor:
        """e_BD, float32, of a padded batch on the CPU."""
        if not packed.supports(self.tower):
            model = self.model
            embed = model.embed_queries if self.side == "query" else model.embed_passages
            return self.passes.padded(embed, batch)
        rows = packed.pack(self.tower, batch).to(self.passes.place)
        return self.model.scaled(packed.pooled(self.tower, rows, self.model.pooling))


class Scorer:
    """A cross-encoder, ready for many pairs. The model is changed in place."""

    def __init__(
        self, model: CrossEncoder, precision: Precision = "float32", choices: Choices | None = None,
        gpu: bool | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.encoder = model.model.base_model
        self.passes = Passes(precision, choices, gpu)
        self.passes.prepare(model, self.encoder)

    def __call__(
        self,
        assembler: Assembler,
        queries: TokenStore,
        query_rows: np.ndarray,
        passages: TokenStore,
        passage_rows: np.ndarray,
    ) -> np.ndarray:
        """Probabilities that passages answer queries, float32 [R]."""
        pairs = queries, query_rows, passages, passage_rows
        return self.passes.over(
            lambda chosen: assembler.pairs(
                queries, query_rows[chosen], passages, passage_rows[chosen], self.model.length
            ),
            self.ce_scores,
            self.lengths(assembler, *pairs),
            query_rows,
            "query",
        )

    def lengths(
        self, assembler: Assembler, queries: TokenStore, query_rows: np.ndarray,
        passages: TokenStore, passage_rows: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Tokens that the model reads of each pair, int64 [R]."""
        return assembler.pair_lengths(
            queries, query_rows, passages, passage_rows, self.model.length
        )

    def ce_scores(self, batch: Batch) -> torch.Tensor:
        """Float32 [B], of a padded batch on the CPU."""
        if not self.model.reads_first_token_only:
            return self.passes.padded(self.model.ce_scores, batch)
        rows = packed.pack(self.encoder, batch).to(self.passes.place)
        first_BD = packed.encode(self.encoder, rows, first_only=True)
        return torch.sigmoid(self.model.classify(first_BD[:, None].float()).squeeze(-1))


def encode_queries(
    model: DualEncoder, assembler: Assembler, store: TokenStore, rows: np.ndarray
) -> np.ndarray:
    """Query embeddings, float32 [R, D]."""
    return Encoder(model, "query")(assembler, store, rows)


def score_pairs(
    model: CrossEncoder,
    assembler: Assembler,
    queries: TokenStore,
    query_rows: np.ndarray,
    passages: TokenStore,
    passage_rows: np.ndarray,
) -> np.ndarray:
    """Probabilities that passages answer queries, float32 [R]."""
    return Scorer(model)(assembler, queries, query_rows, passages, passage_rows)


def _refuse_nan(values: np.ndarray, rows: np.ndarray, what: str) -> None:
    """A NaN ranks anywhere; say where it came from instead."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise UserError(
            f"The model gives NaN or infinity for {int(bad.sum())} rows of the {what} table,"
            f" first {rows[bad][:5].tolist()}. Its weights are damaged or overflowed in training."
        )
