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
        """2 for each weight and token, and 4 * layers * width for each two tokens of a row."""
        lengths_R = mask_RT.sum(1).double()
        tokens, squares = float(lengths_R.sum()), float(lengths_R.square().sum())
        flops = 2 * self.weights * tokens + 4 * self.layers * self.width * squares
        if self.first_token:
            # Of the last layer, the other tokens need keys and values alone.
            rest = self.weights / self.layers - 2 * self.width**2
            flops -= 2 * rest * (tokens - len(mask_RT)) + 4 * self.width * (squares - tokens)
        return flops
