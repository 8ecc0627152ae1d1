"""What workers tell each other: everybody's passages, sums, a word.

Without an initialised process group there is one worker, and every function is the identity;
with one, any backend serves (gloo, nccl).
"""

# Shapes: B rows on this worker, G rows on all workers, D embedding size.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def workers() -> tuple[int, int]:
    """(rank, world): which worker this is, of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all workers, in place: one all-reduce. Identical on every worker."""
    if workers()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def told_by_workers(word: str) -> list[str]:
    """A word of every worker, in rank order. Words are pickled on the way: for a name, once."""
    told = [word] * workers()[1]
    if len(told) > 1:
        dist.all_gather_object(told, word)
    return told


def gather(p_BD: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Join the rows of all workers in rank order; gradients flow back to the row's owner.

    Gradient contract: the gradient that arrives at `p_BD` is the SUM, over all workers, of what
    each worker's loss says about these rows. So if the objective is the sum of the workers'
    losses, every parameter's gradient is complete after one more SUM over workers, and no factor
    of the world size stands anywhere (see loss.py). A gather that drops the gradient of other
    workers' rows does not scale the result: it changes its direction.

    Args:
        p_BD: this worker's rows, `B == sizes[rank]`; workers may hold different numbers, or none.
        sizes: rows of every worker, known to all of them.

    Returns:
        p_GD with `G == sum(sizes)`.
    """
    if workers()[1] == 1:
        return p_BD
    p_GD: torch.Tensor = _Gather.apply(p_BD, tuple(sizes))
    return p_GD


class _Gather(torch.autograd.Function):
    """One all-gather forward, one reduce-scatter backward: (W - 1)/W of all rows sent each way.

    The list forms are those that every supported torch has without a deprecation; they want equal
    shapes, hence the padding. NCCL sends what the formula says. gloo carries a reduce-scatter out
    as an all-reduce, twice the bytes, and is still no slower than an all-reduce asked for.
    """

    @staticmethod
    def forward(ctx: Any, p_BD: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        rank, _ = workers()
        if len(p_BD) != sizes[rank]:
            raise ValueError(f"worker {rank} gathers {len(p_BD)} rows, announced {sizes[rank]}.")
        ctx.sizes, ctx.rows = sizes, sizes[rank]
        padded = _padded(p_BD, max(sizes))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        most = max(ctx.sizes)
        parts = [_padded(part, most) for part in gradients[0].split(ctx.sizes)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts)
        return mine[: ctx.rows], None


def _padded(rows_BD: torch.Tensor, count: int) -> torch.Tensor:
    """Contiguous, with zeros up to `count` rows."""
    if len(rows_BD) == count:
        return rows_BD.contiguous()
    padded = rows_BD.new_zeros(count, *rows_BD.shape[1:])
    padded[: len(rows_BD)] = rows_BD
    return padded
