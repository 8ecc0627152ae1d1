"""Calibration: is a ce_score of 0.9 right nine times in ten, and what would make it so?

Two maps from ce_score to probability. Both rise, so comparing a mapped score with a threshold is
the same as comparing the score with a moved threshold: `below` and `above` say where it moves to,
stored ce_scores stay as they are, and no stage has to know of a map.

| map         | is                                    | source                                    |
| ----------- | ------------------------------------- | ----------------------------------------- |
| Temperature | logits divided by one number          | Guo et al. 2017, arXiv 1706.04599         |
| Isotonic    | the rising function nearest to labels | pool adjacent violators, Ayer et al. 1955 |
"""

# Shapes: N pairs, K knots of a map.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rocketray.artifacts import Version
from rocketray.errors import UserError

BINS = 10
"""Of the reliability curve: equal widths, as in Guo et al."""
JUDGED = 100
"""Retrieved pairs that people called irrelevant, from which these alone are the negatives."""
EVERYTHING, NOTHING = math.nextafter(1.0, 2.0), math.nextafter(0.0, -1.0)
"""Thresholds just beyond the range of a ce_score: all are under the one and over the other."""
SATURATED = 1e-7
"""float32 probabilities end in 0 and 1; a fit looks at them from this far."""


class Pairs(NamedTuple):
    """Scored pairs with labels, to fit a map to or to test one on."""

    queries_N: np.ndarray
    ce_N: np.ndarray
    """float64."""
    relevant_N: np.ndarray
    """bool."""
    judged: bool
    """Whether people judged the negatives too. If not, every unlabelled passage counts as
    irrelevant, and probabilities come out too low where labels are missing."""


@dataclass(frozen=True)
class Temperature:
    """sigmoid(logit(ce_score) / temperature): above 1 less sure, under 1 surer; 0.5 stays."""

    temperature: float

    def __call__(self, ce_N: np.ndarray) -> np.ndarray:
        return _sigmoid(_logit(np.asarray(ce_N, float)) / self.temperature)

    def below(self, threshold: float) -> float:
        """map(ce) < threshold, exactly where ce < this."""
        return max(self._back(threshold), math.ulp(0.0)) if threshold > 0 else NOTHING

    def above(self, threshold: float) -> float:
        """map(ce) > threshold, exactly where ce > this."""
        # 0 and 1 stay under every temperature, also one that rounds a threshold away to them.
        return min(self._back(threshold), math.nextafter(1.0, 0.0)) if threshold < 1 else EVERYTHING

    def _back(self, threshold: float) -> float:
        return float(_sigmoid(_logit(np.array(threshold)) * self.temperature))


@dataclass(frozen=True)
class Isotonic:
    """Straight lines between knots, flat beyond them; K knots, both arrays rise."""

    scores_K: np.ndarray
    values_K: np.ndarray

    def __call__(self, ce_N: np.ndarray) -> np.ndarray:
        mapped_N: np.ndarray = np.interp(ce_N, self.scores_K, self.values_K)
        return mapped_N

    def below(self, threshold: float) -> float:
        """map(ce) < threshold, exactly where ce < this."""
        first = int(np.searchsorted(self.values_K, threshold, side="left"))
        if first == len(self.values_K):
            return EVERYTHING
        return self._between(first, threshold) if first else NOTHING

    def above(self, threshold: float) -> float:
        """map(ce) > threshold, exactly where ce > this."""
        first = int(np.searchsorted(self.values_K, threshold, side="right"))
        if first == len(self.values_K):
            return EVERYTHING
        return self._between(first, threshold) if first else NOTHING

    def _between(self, knot: int, threshold: float) -> float:
        """Where the line up to a knot crosses the threshold."""
        left, right = self.scores_K[knot - 1 : knot + 1]
        low, high = self.values_K[knot - 1 : knot + 1]
        return float(left + (right - left) * (threshold - low) / (high - low))


Map = Temperature | Isotonic


# ---------------------------------------------------------------------------------------- fitting


def fit(kind: str, pairs: Pairs) -> Map:
    """The map of this kind (`temperature`, `isotonic`) that fits best.

    Raises:
        UserError: the pairs are all relevant, or all irrelevant.
    """
    relevant = int(pairs.relevant_N.sum())
    if not 0 < relevant < len(pairs.relevant_N):
        raise UserError(
            f"Of {len(pairs.relevant_N):,} scored pairs {relevant:,} are relevant: calibration"
            " needs some that are and some that are not. Add judgements, or set"
            " denoise.calibration=none."
        )
    fitting = fit_temperature if kind == "temperature" else fit_isotonic
    return fitting(pairs.ce_N, pairs.relevant_N)


def fit_temperature(ce_N: np.ndarray, relevant_N: np.ndarray) -> Temperature:
    """The likeliest temperature, between 0.001 and 1,000.

    The log-likelihood is concave in 1/temperature, so the sign of its slope is enough: bisection.
    """
    logits_N = _logit(np.clip(ce_N, SATURATED, 1 - SATURATED))
    low, high = math.log(1e-3), math.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        slope = np.sum(logits_N * (relevant_N - _sigmoid(logits_N * math.exp(middle))))
        low, high = (middle, high) if slope > 0 else (low, middle)
    return Temperature(math.exp(-(low + high) / 2))


def fit_isotonic(ce_N: np.ndarray, relevant_N: np.ndarray) -> Isotonic:
    """The rising step function of least squared error, with its steps joined by lines.

    Equal scores count as one. Groups are joined from left to right as long as one has a lower mean
    than its predecessor: each is joined once, so this is linear after sorting.
    """
    scores, back = np.unique(ce_N, return_inverse=True)
    sizes = np.bincount(back).tolist()
    sums = np.bincount(back, weights=relevant_N).tolist()
    groups: list[list[float]] = []  # [first score, last score, sum, size]
    for score, total, size in zip(scores.tolist(), sums, sizes, strict=True):
        groups.append([score, score, total, size])
        while len(groups) > 1 and groups[-2][2] * groups[-1][3] >= groups[-1][2] * groups[-2][3]:
            right = groups.pop()
            groups[-1][1:] = [right[1], groups[-1][2] + right[2], groups[-1][3] + right[3]]
    knots = [(edge, g[2] / g[3]) for g in groups for edge in dict.fromkeys(g[:2])]
    scores_K, values_K = np.array(knots).T
    return Isotonic(scores_K, values_K)


# -------------------------------------------------------------------------------------- measuring


class Reliability(NamedTuple):
    """Bins of a probability: how many pairs, what was said on average, how often it was so."""

    counts: np.ndarray
    said: np.ndarray
    so: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: mean distance of said and so, over pairs."""
        filled = self.counts > 0
        apart = np.abs(self.said - self.so)[filled]
        return float(np.sum(self.counts[filled] * apart) / self.counts.sum())


def reliability(probability_N: np.ndarray, relevant_N: np.ndarray) -> Reliability:
    """In `BINS` bins of equal width; `said` and `so` are NaN where a bin is empty."""
    bins_N = np.minimum((probability_N * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins_N, minlength=BINS)
    said, so = (
        np.divide(
            np.bincount(bins_N, weights=values, minlength=BINS), counts,
            out=np.full(BINS, np.nan), where=counts > 0,
        )
        for values in (probability_N, relevant_N)
    )  # fmt: skip
    return Reliability(counts, said, so)


def labelled_pairs(scored: Version, qrels: pa.Table) -> Pairs:
    """A scored run's pairs with their labels.

    Negatives are the passages that people judged irrelevant, if there are `JUDGED` of them;
    otherwise all that carry no label.
    """
    tables = [pairs_of(scored.table(block.number)) for block in scored.blocks]
    queries_N, passages_N, ce_N = (np.concatenate(column) for column in zip(*tables, strict=True))
    known, positive = qrels, qrels.filter(pc.greater(qrels["relevance"], 0))
    is_known_N, relevant_N = (in_qrels(queries_N, passages_N, table) for table in (known, positive))
    scored_N = np.isfinite(ce_N)
    judged = int(np.sum(scored_N & is_known_N & ~relevant_N)) >= JUDGED
    kept_N = scored_N & is_known_N if judged else scored_N
    return Pairs(queries_N[kept_N], ce_N[kept_N].astype(float), relevant_N[kept_N], judged)


def pairs_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A table of lists, laid flat: queries, passages and ce_scores, int64 [N], int64 [N],
    float32 [N]."""
    lengths = pc.list_value_length(table["passages"]).to_numpy()
    queries = np.repeat(table["query"].to_numpy(), lengths)
    passages, ce = (
        table[name].combine_chunks().flatten().to_numpy() for name in ("passages", "ce_scores")
    )
    return queries, passages, ce


def in_qrels(queries_N: np.ndarray, passages_N: np.ndarray, qrels: pa.Table) -> np.ndarray:
    """Which pairs stand in a table of judgements: bool [N]."""
    judged = keys(qrels["query"].to_numpy(), qrels["passage"].to_numpy())
    found_N: np.ndarray = np.isin(keys(queries_N, passages_N), judged)
    return found_N


def keys(queries_N: np.ndarray, passages_N: np.ndarray) -> np.ndarray:
    """One number for each pair: 2^31 queries and 2^32 passages are told apart."""
    joined_N: np.ndarray = (queries_N.astype(np.int64) << 32) | passages_N
    return joined_N


def moved(found: Map, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Thresholds of the mapped score -> thresholds of the ce_score with the same verdicts."""
    return {
        "negative_below": found.below(thresholds["negative_below"]),
        "positive_above": found.above(thresholds["positive_above"]),
    }


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # 1 / infinity is the 0 that is meant.
        value: np.ndarray = 1 / (1 + np.exp(-x))
    return value


def _logit(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # 0 and 1 lie at the infinities.
        value: np.ndarray = np.log(p) - np.log1p(-p)
    return value
