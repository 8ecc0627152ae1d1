"""order.py: which row is where, by hand and by counting."""

from __future__ import annotations

import numpy as np
import pytest

from rocketray.model.order import Order, Shard, arrange, share, steps_of


def test_an_epoch_shows_every_row_once_although_batches_straddle() -> None:
    order = Order(rows=7, global_batch=3, seed=1)
    stream = np.concatenate([order.batch(step) for step in range(14)])  # 42 = 6 epochs.
    epochs = stream.reshape(6, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_a_batch_depends_on_its_step_and_not_on_what_was_asked_before() -> None:
    order = Order(rows=7, global_batch=3, seed=1)
    backwards = [order.batch(step) for step in (5, 4, 3)]
    fresh = [Order(rows=7, global_batch=3, seed=1).batch(step) for step in (5, 4, 3)]
    assert np.array_equal(backwards, fresh)
    assert not np.array_equal(fresh[0], Order(rows=7, global_batch=3, seed=2).batch(5))


def test_a_batch_larger_than_the_data_repeats_rows() -> None:
    batch = Order(rows=3, global_batch=8, seed=0).batch(0)
    assert np.bincount(batch).min() >= 2


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch of 4 from 0 rows"):
        Order(rows=0, global_batch=4, seed=0)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [(10, 5, 2, 4), (10, 4, 2, 5), (10, 64, 1, 1), (10, 1, 0.5, 5), (10, 3, 0.7, 3), (5, 9, 0, 1)],
)
def test_steps(rows: int, batch: int, epochs: float, steps: int) -> None:
    assert steps_of(rows, batch, epochs) == steps


def shards_of(rows: int, micro_shard: int) -> list[Shard]:
    return arrange(np.ones(rows, np.int64), micro_shard)[1]


def test_shards_and_shares() -> None:
    shards = shards_of(10, 4)
    assert shards == [Shard(0, 0, 4), Shard(1, 4, 8), Shard(2, 8, 10)]
    assert [shards[share(3, rank, 2)] for rank in range(2)] == [shards[:2], shards[2:]]
    assert [len(shards[share(3, rank, 4)]) for rank in range(4)] == [1, 1, 1, 0]


def test_every_shard_has_its_own_seed() -> None:
    seeds = {shard.seed(0, step) for shard in shards_of(40, 4) for step in range(10)}
    assert len(seeds) == 100
    assert Shard(1, 4, 8).seed(0, 3) == Shard(1, 0, 2).seed(0, 3)


def test_arranged_shards_hold_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 50)
    order, shards = arrange(lengths, 8)
    assert sorted(order) == list(range(50))
    assert [shard.rows for shard in shards] == [8] * 6 + [2]
    assert padded_tokens(lengths[order], shards) < 1.2 * lengths.sum()
    assert padded_tokens(lengths, shards) > 1.2 * lengths.sum()
    shares = [padded_tokens(lengths[order], shards[share(6, rank, 2)]) for rank in range(2)]
    assert max(shares) < 1.5 * min(shares)


def test_shards_of_long_rows_hold_fewer() -> None:
    order, shards = arrange(np.array([9, 2, 2, 5, 2, 5]), 4, tokens=10)
    # Ascending 2 2 2 | 5 5 | 9: four rows up to a 5 would be 20, a row of 9 with another is 18.
    assert order.tolist() == [1, 2, 4, 3, 5, 0]
    assert shards == [Shard(0, 0, 3), Shard(1, 3, 5), Shard(2, 5, 6)]


def test_a_row_above_the_limit_is_a_shard_of_its_own() -> None:
    _, shards = arrange(np.array([30, 40, 3]), 4, tokens=10)
    assert sorted(shard.rows for shard in shards) == [1, 1, 1]


def test_enough_tokens_change_nothing() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 50)
    (order, shards), (same_order, same_shards) = arrange(lengths, 8), arrange(lengths, 8, 800)
    assert np.array_equal(order, same_order)
    assert shards == same_shards


def padded_tokens(lengths: np.ndarray, shards: list[Shard]) -> int:
    return sum(int(lengths[s.start : s.stop].max()) * s.rows for s in shards)
