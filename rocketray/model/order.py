"""Which rows are in step t, how they are cut into shards, and whose the shards are.

Pure functions of the recipe: the number of workers enters only in `share`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def steps_of(rows: int, global_batch: int, epochs: float) -> int:
    """How many steps cover `epochs` passes over the rows: the last batch is filled up."""
    return max(1, math.ceil(round(epochs * rows, 6) / global_batch))


class Order:
    """An endless stream of epochs, each a permutation of all rows.

    Position p is in epoch p // rows; epoch e's permutation depends on (seed, e) alone. Step t
    (from 0) takes positions [t * global_batch, (t + 1) * global_batch), so every batch is full,
    and one may straddle two epochs.
    """

    def __init__(self, rows: int, global_batch: int, seed: int) -> None:
        if rows < 1 or global_batch < 1:
            raise ValueError(f"no batch of {global_batch} from {rows} rows.")
        self.rows, self.global_batch, self.seed = rows, global_batch, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """int64 [global_batch]: rows of this step, with repeats only if there are too few."""
        first = step * self.global_batch
        positions = np.arange(first, first + self.global_batch)
        epochs = positions // self.rows
        parts = [
            self._shuffled(int(epoch))[positions[epochs == epoch] % self.rows]
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)

    def epoch(self, step: int) -> float:
        """Epochs behind us once `step` steps are done."""
        return step * self.global_batch / self.rows

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._epoch, self._permutation = epoch, generator.permutation(self.rows)
        return self._permutation


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the global batch that go through the model in one forward."""

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def seed(self, seed: int, step: int, side: int = 0) -> int:
        """The random state of this shard's forward: dropout depends on nothing else.

        Args:
            side: 0 for queries, 1 for passages, where they go through the model apart.
        """
        return int(np.random.SeedSequence([seed, step, self.number, side]).generate_state(1)[0])


def arrange(
    lengths_R: np.ndarray, micro_shard: int, tokens: int | None = None
) -> tuple[np.ndarray, list[Shard]]:
    """An order of a batch's rows in which shards hold rows of like length, and those shards.

    The loss of a batch is a sum, so its order is free. Shards are spread (golden ratio) so that
    every contiguous share of them has short and long ones: workers finish together.

    Args:
        micro_shard: rows of a shard; the last may be short.
        tokens: shards of long rows hold fewer, so that their rows times the longest do not pass
            it. None: never, for random states belong to shards.
    """
    order_R = np.argsort(lengths_R, kind="stable")
    sizes = np.array(_sizes(lengths_R[order_R].tolist(), micro_shard, tokens))
    whole = len(sizes) - int(sizes[-1] < micro_shard)
    spread = np.argsort((np.arange(whole) * 0.6180339887498949) % 1, kind="stable")
    spread = np.append(spread, np.arange(whole, len(sizes)))
    runs = np.split(order_R, np.cumsum(sizes)[:-1])
    stops = np.cumsum(sizes[spread])
    bounds = zip((stops - sizes[spread]).tolist(), stops.tolist(), strict=True)
    shards = [Shard(number, start, stop) for number, (start, stop) in enumerate(bounds)]
    return np.concatenate([runs[i] for i in spread]), shards


def _sizes(ascending: list[int], micro_shard: int, tokens: int | None) -> list[int]:
    """Rows of each shard over rows of ascending length."""
    sizes = [0]
    for length in ascending:
        more = sizes[-1] + 1
        full = more > micro_shard or (tokens is not None and more * length > tokens)
        if full and sizes[-1]:
            sizes.append(0)
        sizes[-1] += 1
    return sizes


def share(count: int, rank: int, world: int) -> slice:
    """The contiguous share of `count` things a worker takes; sizes differ by one at most.

    >>> [share(5, rank, 2) for rank in range(2)]
    [slice(0, 3, None), slice(3, 5, None)]
    """
    size, extra = divmod(count, world)
    start = rank * size + min(rank, extra)
    return slice(start, start + size + (rank < extra))
