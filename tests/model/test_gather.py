"""gather.py: values forward, sums backward, for uneven shares."""

from __future__ import annotations

import torch
import torch.distributed as dist

from rocketray.model.gather import gather, sum_over_workers, told_by_workers
from rocketray.model.gather import workers as who
from tests.distributed import Workers

SIZES = (2, 0, 3)


def _gather_and_weigh() -> tuple[list[float], list[float], tuple[int, int], float]:
    """Worker r holds rows 10 r, 10 r + 1 ... and its loss is (r + 1) * sum of (column * value)."""
    rank, _ = who()
    p_B1 = torch.arange(SIZES[rank], dtype=torch.float64)[:, None] + 10 * rank
    p_B1.requires_grad_()
    p_G1 = gather(p_B1, SIZES)
    weight_G1 = torch.arange(sum(SIZES), dtype=torch.float64)[:, None]
    ((rank + 1) * weight_G1 * p_G1).sum().backward()
    assert p_B1.grad is not None
    total = sum_over_workers(torch.tensor([float(rank)]))
    return p_G1.flatten().tolist(), p_B1.grad.flatten().tolist(), who(), float(total)


def test_rows_join_in_rank_order_and_gradients_add_up_at_their_owner(workers: Workers) -> None:
    answers = workers.run(3, _gather_and_weigh)
    for rank, (values, _, place, total) in enumerate(answers):
        assert values == [0, 1, 20, 21, 22]
        assert place == (rank, 3)
        assert total == 0 + 1 + 2
    # Column c gets c from worker 0, 2 c from worker 1, 3 c from worker 2: 6 c in all.
    assert [gradient for _, gradient, _, _ in answers] == [[0, 6], [], [12, 18, 24]]


def test_one_worker_is_the_identity() -> None:
    assert not dist.is_initialized()
    p_BD = torch.ones(2, 3)
    assert gather(p_BD, [2]) is p_BD
    assert who() == (0, 1)
    assert sum_over_workers(p_BD) is p_BD
    assert told_by_workers("me") == ["me"]


def _tell_rank() -> list[str]:
    return told_by_workers(f"worker {who()[0]}")


def test_everybody_is_told_every_word_in_rank_order(workers: Workers) -> None:
    assert workers.run(2, _tell_rank) == [["worker 0", "worker 1"]] * 2


def _all_announce_one_row() -> str:
    try:
        gather(torch.zeros(2, 3), [1, 1])
    except ValueError as error:
        return str(error)
    return ""


def test_other_rows_than_announced_are_refused(workers: Workers) -> None:
    assert workers.run(2, _all_announce_one_row) == [
        "worker 0 gathers 2 rows, announced 1.",
        "worker 1 gathers 2 rows, announced 1.",
    ]
