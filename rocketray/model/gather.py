"""What workers tell each other: everybody's passages, sums, nothing else.

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
    """One all-gather forward, one all-reduce backward.

    The list form of all_gather is the one that every supported torch has without a deprecation;
    it wants equal shapes, hence the padding. Backward could be a reduce-scatter, half the bytes;
    gloo's is slower than its all-reduce, and both are small beside the parameters' gradient.
    """

    @staticmethod
    def forward(ctx: Any, p_BD: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        rank, _ = workers()
        if len(p_BD) != sizes[rank]:
            raise ValueError(f"worker {rank} gathers {len(p_BD)} rows, announced {sizes[rank]}.")
        ctx.start, ctx.rows = sum(sizes[:rank]), sizes[rank]
        padded = p_BD.new_zeros(max(sizes), *p_BD.shape[1:])
        padded[: len(p_BD)] = p_BD
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        # A copy: autograd forbids writing into the gradient it hands over.
        gradient_GD = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient_GD)
        return gradient_GD[ctx.start : ctx.start + ctx.rows], None
