"""How good the model is by now: MRR@10 on dev, the same number on every worker.

Work is shared over workers in fixed batches; each fills its places in a tensor of zeros and the
tensors are summed, which is exact. So the number does not depend on who computed what.
"""

# Shapes: Q dev queries, P pool passages, B passages of a batch, K the ten best, D embedding size.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.gather import sum_over_workers, workers
from rocketray.model.inference import CPU_TOKENS, GPU_TOKENS
from rocketray.model.order import share
from rocketray.model.steps import Feed
from rocketray.model.tokens import batches_by_budget
from rocketray.model.top_k import best, in_order

CUTOFF = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Dev:
    """The questions a model is judged by while it trains. Everything is a row number."""

    queries: np.ndarray
    """int64 [Q]: rows of the query token store."""
    relevant: list[np.ndarray]
    """Per dev query: the passage rows that answer it."""
    pool: np.ndarray | None = None
    """int64 [P]: the passage rows a dual encoder ranks for every query."""
    candidates: list[np.ndarray] | None = None
    """Per dev query: the passage rows a cross-encoder reranks."""


@torch.no_grad()
def dual_mrr(model: DualEncoder, feed: Feed, dev: Dev) -> float:
    """MRR@10 of ranking the whole pool for every dev query.

    A worker holds one batch of passages at a time and the ten best places of each query, so the
    pool may be the whole corpus.
    """
    if dev.pool is None:
        raise ValueError("a dual encoder is judged on a pool, and dev has none.")
    pool_P = np.unique(dev.pool)  # Sorted, so that position order is row order.
    scores_QK, places_QK = _nearest(model, feed, _queries(model, feed, dev.queries), pool_P)
    found = [
        reciprocal_rank_of(pool_P[places_K[scores_K > -np.inf]], relevant)
        for scores_K, places_K, relevant in zip(scores_QK, places_QK, dev.relevant, strict=True)
    ]
    return float(np.mean(found))


def _nearest(
    model: DualEncoder, feed: Feed, q_QD: torch.Tensor, pool_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and places of each query's ten best passages, best first, the same on every worker."""
    limit, prompt = model.passage_length, model.passage_prompt
    lengths = feed.assembler.passage_lengths(feed.passages, pool_P, limit, prompt)
    batches = batches_by_budget(lengths, _budget(feed))
    rank, world = workers()
    scores_QK = np.full((len(q_QD), CUTOFF), -np.inf, dtype=q_QD.cpu().numpy().dtype)
    places_QK = np.zeros((len(q_QD), CUTOFF), np.int64)
    for places in batches[share(len(batches), rank, world)]:
        batch = feed.assembler.passages(feed.passages, pool_P[places], limit, prompt)
        scores_QB = (q_QD @ feed.through(model.embed_passages, batch).T).cpu().numpy()
        scores_QB[np.isnan(scores_QB)] = -np.inf  # What is no number is not found.
        places_QB = np.broadcast_to(places, scores_QB.shape)
        scores = np.concatenate([scores_QK, scores_QB], axis=1)
        scores_QK, places_QK = best(scores, np.concatenate([places_QK, places_QB], axis=1), CUTOFF)
    all_scores, all_places = _side_by_side(scores_QK, feed), _side_by_side(places_QK, feed)
    return in_order(all_scores, all_places, CUTOFF)


def _side_by_side(mine_QK: np.ndarray, feed: Feed) -> np.ndarray:
    """[Q, K * workers]: what each worker has. Sums of its numbers and zeros are exact."""
    rank, world = workers()
    filled = torch.zeros(
        len(mine_QK), world, mine_QK.shape[1], dtype=torch.from_numpy(mine_QK).dtype
    )
    filled[:, rank] = torch.from_numpy(mine_QK)
    summed: np.ndarray = sum_over_workers(filled.to(feed.device)).flatten(1).cpu().numpy()
    return summed


def reciprocal_rank_of(ranked: np.ndarray, relevant: np.ndarray) -> float:
    """1 / rank of the first relevant passage of a ranked list, 0 where there is none."""
    places = np.flatnonzero(np.isin(ranked, relevant))
    return 1 / (1 + int(places[0])) if len(places) else 0.0


@torch.no_grad()
def cross_mrr(model: CrossEncoder, feed: Feed, dev: Dev) -> float:
    """MRR@10 of every dev query's candidates, reranked by ce_score."""
    if dev.candidates is None:
        raise ValueError("a cross-encoder is judged on candidates, and dev has none.")
    candidates = [np.unique(rows) for rows in dev.candidates]
    sizes = [len(rows) for rows in candidates]
    queries, passages = np.repeat(dev.queries, sizes), np.concatenate(candidates)
    assembler, length = feed.assembler, model.length

    def ce_scores(pairs: np.ndarray) -> torch.Tensor:
        batch = assembler.pairs(
            feed.queries, queries[pairs], feed.passages, passages[pairs], length
        )
        return feed.through(model.ce_scores, batch)

    lengths = assembler.pair_lengths(feed.queries, queries, feed.passages, passages, length)
    like = next(model.parameters())
    batches = batches_by_budget(lengths, _budget(feed))
    scores = _fill((len(queries),), batches, ce_scores, like=like).cpu().numpy()
    by_query = np.split(scores, np.cumsum(sizes)[:-1])
    found = [
        reciprocal_rank(scores_P, np.flatnonzero(np.isin(rows, relevant)))
        for scores_P, rows, relevant in zip(by_query, candidates, dev.relevant, strict=True)
    ]
    return float(np.mean(found))


def reciprocal_rank(scores_P: np.ndarray, relevant: np.ndarray) -> float:
    """1 / rank of the best relevant position, 0 beyond the cutoff; ties go to the lower position.

    >>> reciprocal_rank(np.array([0.1, 0.9, 0.9, 0.3]), np.array([2, 3]))
    0.5
    """
    if not len(relevant):
        return 0.0
    best = min(relevant, key=lambda place: (-scores_P[place], place))
    if np.isnan(scores_P[best]):  # Nothing compares with NaN, so it would come out first.
        return 0.0
    ahead = np.sum(scores_P > scores_P[best]) + np.sum(scores_P[:best] == scores_P[best])
    return 1 / (1 + int(ahead)) if ahead < CUTOFF else 0.0


def _queries(model: DualEncoder, feed: Feed, rows: np.ndarray) -> torch.Tensor:
    limit, prompt = model.query_length, model.query_prompt
    lengths = feed.assembler.query_lengths(feed.queries, rows, limit, prompt)

    def embed(places: np.ndarray) -> torch.Tensor:
        batch = feed.assembler.queries(feed.queries, rows[places], limit, prompt)
        return feed.through(model.embed_queries, batch)

    return _embeddings(model, feed, lengths, embed)


Compute = Callable[[np.ndarray], torch.Tensor]
"""From places to one row of numbers for each."""


def _embeddings(
    model: DualEncoder, feed: Feed, lengths: np.ndarray, embed: Compute
) -> torch.Tensor:
    batches = batches_by_budget(lengths, _budget(feed))
    return _fill((len(lengths), model.size), batches, embed, like=next(model.parameters()))


def _fill(
    shape: tuple[int, ...], batches: Sequence[np.ndarray], compute: Compute, *, like: torch.Tensor
) -> torch.Tensor:
    """Compute this worker's share of the batches, and get the rest from the others."""
    filled = like.new_zeros(shape)
    for places in batches[share(len(batches), *workers())]:
        filled[torch.from_numpy(places).to(like.device)] = compute(places).to(filled)
    return sum_over_workers(filled)


def _budget(feed: Feed) -> int:
    return GPU_TOKENS if feed.device.type == "cuda" else CPU_TOKENS
