"""Models over many rows: batches by token budget, results in row order, NaN refused.

Shapes: R rows asked for, B rows of one batch, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rocketray.errors import UserError
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.tokens import Assembler, Batch, TokenStore, batches_by_budget

# Tokens in one forward pass, padding included. On a CPU small batches stay in the cache; a GPU
# wants enough work to hide its launches.
CPU_TOKENS = 2048
GPU_TOKENS = 65536


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encode_queries(
    model: DualEncoder, assembler: Assembler, store: TokenStore, rows: np.ndarray
) -> np.ndarray:
    """Query embeddings, float32 [R, D]."""
    limit, prompt = model.query_length, model.query_prompt
    return _in_batches(
        lambda chosen: assembler.queries(store, rows[chosen], limit, prompt),
        model.embed_queries,
        assembler.query_lengths(store, rows, limit, prompt),
        rows,
        "query",
    )


def encode_passages(
    model: DualEncoder, assembler: Assembler, store: TokenStore, rows: np.ndarray
) -> np.ndarray:
    """Passage embeddings, float32 [R, D]."""
    limit, prompt = model.passage_length, model.passage_prompt
    return _in_batches(
        lambda chosen: assembler.passages(store, rows[chosen], limit, prompt),
        model.embed_passages,
        assembler.passage_lengths(store, rows, limit, prompt),
        rows,
        "passage",
    )


def score_pairs(
    model: CrossEncoder,
    assembler: Assembler,
    queries: TokenStore,
    query_rows: np.ndarray,
    passages: TokenStore,
    passage_rows: np.ndarray,
) -> np.ndarray:
    """Probabilities that passages answer queries, float32 [R]."""
    limit = model.length
    return _in_batches(
        lambda chosen: assembler.pairs(
            queries, query_rows[chosen], passages, passage_rows[chosen], limit
        ),
        model.ce_scores,
        assembler.pair_lengths(queries, query_rows, passages, passage_rows, limit),
        query_rows,
        "query",
    )


def _in_batches(
    assemble: Callable[[np.ndarray], Batch],
    forward: Callable[[Batch], Any],
    lengths: np.ndarray,
    rows: np.ndarray,
    what: str,
) -> np.ndarray:
    place = device()
    budget = GPU_TOKENS if place.type == "cuda" else CPU_TOKENS
    result = np.empty(0, np.float32)
    for chosen in batches_by_budget(lengths, budget):
        batch = {name: tensor.to(place) for name, tensor in assemble(chosen).items()}
        with torch.inference_mode():
            values = forward(batch).float().cpu().numpy()
        if not len(result):
            result = np.empty((len(rows), *values.shape[1:]), np.float32)
        result[chosen] = values
    _refuse_nan(result, rows, what)
    return result


def _refuse_nan(values: np.ndarray, rows: np.ndarray, what: str) -> None:
    """A NaN ranks anywhere; say where it came from instead."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise UserError(
            f"The model gives NaN or infinity for {int(bad.sum())} rows of the {what} table,"
            f" first {rows[bad][:5].tolist()}. Its weights are damaged or overflowed in training."
        )
