"""Gradients through a batch whose activations do not fit (GradCache, arXiv 2101.06983).

The contrastive loss needs all embeddings of a step but not all activations: embed every shard
without keeping activations, differentiate the loss down to the embeddings, then forward each
shard once more, with its own random state, and push its part of that gradient through.
"""

# Shapes: B rows of all shards together, D embedding size.

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rocketray.model.order import Shard

Forward = Callable[[Shard], torch.Tensor]
"""One side of a shard, embedded. The same shard must give the same numbers again."""


class GradCache:
    """`q_BD` and `p_BD` of some shards, and the way back from their gradients to the weights.

    Args:
        queries, passages: embed one side of a shard. They are apart so that backward needs the
            activations of one side at a time.
        empty_0D: no row of an embedding; a worker may have no shards.
        keep: how many shards' activations stay, and so need no second forward; the gradient is the
            same. They are the last ones, and one at least: backward begins there.
    """

    def __init__(
        self, queries: Forward, passages: Forward, shards: Sequence[Shard], empty_0D: torch.Tensor,
        *, keep: int,
    ) -> None:  # fmt: skip
        self._sides, self._shards = (queries, passages), shards
        self._embedded = []
        for left, shard in zip(range(len(shards), 0, -1), shards, strict=True):
            with torch.set_grad_enabled(left <= max(1, keep)):
                self._embedded.append([side(shard) for side in self._sides])
        self.q_BD = _leaf([empty_0D, *(q for q, _ in self._embedded)])
        self.p_BD = _leaf([empty_0D, *(p for _, p in self._embedded)])

    def backward(self) -> None:
        """Add the weights' gradient, once the loss has given `q_BD` and `p_BD` theirs."""
        assert self.q_BD.grad is not None
        assert self.p_BD.grad is not None
        gradients = zip(
            torch.split(self.q_BD.grad, [len(q) for q, _ in self._embedded]),
            torch.split(self.p_BD.grad, [len(p) for _, p in self._embedded]),
            strict=True,
        )
        for shard, pair in reversed(list(zip(self._shards, gradients, strict=True))):
            kept = self._embedded.pop()
            for side, gradient in zip(self._sides, pair, strict=True):
                embedded = kept.pop(0)
                if not embedded.requires_grad:
                    embedded = side(shard)
                torch.autograd.backward(embedded, gradient)


def _leaf(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.detach() for part in parts]).requires_grad_()
