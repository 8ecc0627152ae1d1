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

Forward = Callable[[Shard], tuple[torch.Tensor, torch.Tensor]]
"""Queries and passages of a shard, embedded. The same shard must give the same numbers again."""


class GradCache:
    """`q_BD` and `p_BD` of some shards, and the way back from their gradients to the weights.

    Args:
        empty_0D: no row of an embedding; a worker may have no shards.
        recompute: False keeps all activations and forwards once, for the same gradient. The last
            shard's are kept in any case: backward begins with them.
    """

    def __init__(
        self, forward: Forward, shards: Sequence[Shard], empty_0D: torch.Tensor, *, recompute: bool
    ) -> None:
        self._forward, self._shards = forward, shards
        self._embedded = []
        for shard in shards:
            with torch.set_grad_enabled(not recompute or shard is shards[-1]):
                self._embedded.append(forward(shard))
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
        for shard, gradient in reversed(list(zip(self._shards, gradients, strict=True))):
            embedded = self._embedded.pop()
            if not embedded[0].requires_grad:
                embedded = self._forward(shard)
            torch.autograd.backward(embedded, gradient)


def _leaf(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.detach() for part in parts]).requires_grad_()
