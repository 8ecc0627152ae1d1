"""What a training log tells: the loss of every step, and the dev evaluations between them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

POINTS = 400
"""More would not show at the width of a screen, and would make the page heavy."""


@dataclass(frozen=True)
class Curve:
    """One model's training. Pairs of arrays of equal length: loss by step, dev MRR@10 by step."""

    steps: np.ndarray
    losses: np.ndarray
    dev_steps: np.ndarray
    dev_mrr: np.ndarray


def read(log: Path) -> Curve:
    """Read a log of JSON lines. A line that is cut short (a killed run) is passed over."""
    losses: list[tuple[float, float]] = []
    dev: list[tuple[float, float]] = []
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            record = _parse(line)
            if "loss" in record:
                losses.append((record["step"], record["loss"]))
            elif "dev_mrr@10" in record:
                dev.append((record["step"], record["dev_mrr@10"]))
    return Curve(*_columns(losses), *_columns(dev))


def _parse(line: str) -> dict[str, float]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) and "step" in record else {}


def _columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; a loss that was no number (its step was skipped) is left out."""
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table[:, 1])]
    return table[:, 0], table[:, 1]


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving average over a twenty-fifth of the curve, shorter at both ends."""
    reach = len(values) // 50
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    mean: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return mean


def thin(values: np.ndarray, points: int = POINTS) -> np.ndarray:
    """At most `points` values: means of neighbours."""
    if len(values) <= points:
        return values
    starts = np.linspace(0, len(values), points, endpoint=False).astype(np.int64)
    lengths = np.diff(np.append(starts, len(values)))
    mean: np.ndarray = np.add.reduceat(values, starts) / lengths
    return mean
