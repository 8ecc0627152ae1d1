"""Floating-point operations of an encoder, for utilisation: what the task needs, no more.

Padding, recomputation (GradCache, checkpointing) and what `first_token` skips do not count.
"""

# Shapes: R rows of a batch, T tokens of the longest.

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel

BACKWARD = 3
"""Forward and backward cost three forwards."""


def of_forward(
    weights: float, layers: int, width: int, *, rows: float, tokens: float, squares: float,
    first_token: bool,
) -> float:  # fmt: skip
    """2 for each weight and token, and 4 * layers * width for each two tokens of a row.

    Args:
        weights: parameters of the layers' matrices.
        squares: the rows' lengths squared, added up.
        first_token: only the first token's last layer is computed.
    """
    flops = 2 * weights * tokens + 4 * layers * width * squares
    if first_token:
        # Of the last layer, the other tokens need keys and values alone.
        rest = weights / layers - 2 * width**2
        flops -= 2 * rest * (tokens - rows) + 4 * width * (squares - tokens)
    return flops


class Flops:
    """Operations of one encoder's forward pass.

    Args:
        first_token: only the first token's last layer is computed.
    """

    def __init__(self, tower: PreTrainedModel, *, first_token: bool) -> None:
        self._tower = tower
        self.first_token = first_token
        self.layers = int(tower.config.num_hidden_layers)
        self.width = int(tower.config.hidden_size)

    @cached_property
    def weights(self) -> int:
        """Parameters of the layers' matrices: what every token is multiplied by."""
        stacks = [
            module
            for module in self._tower.modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.layers
        ]
        return sum(p.numel() for stack in stacks for p in stack.parameters() if p.ndim >= 2)

    def forward(self, mask_RT: torch.Tensor) -> float:
        lengths_R = mask_RT.sum(1).double()
        return of_forward(
            self.weights, self.layers, self.width, rows=len(mask_RT),
            tokens=float(lengths_R.sum()), squares=float(lengths_R.square().sum()),
            first_token=self.first_token,
        )  # fmt: skip
