"""Linear layers in 8-bit integers, for CPUs that multiply them faster than floating point.

Weights are rounded once, with a scale for each output; activations at every call, with a scale for
each token: one large token then costs no other token its precision. Embeddings, attention, norms
and heads stay float32.

Processors without such instructions (VNNI, AMX) multiply the same integers in float32: sums of up
to 1,040 products are exact there too and longer ones to rounding, so mixed nodes make the same
numbers, but nothing is faster.
"""

# Shapes: N tokens, I inputs, O outputs.

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import nn

LARGEST = 127
TINY = 1e-12
"""Keeps the scale of a row of zeros from dividing by zero."""


class Linear8(nn.Module):
    """Stands for an `nn.Linear`, to within the rounding of both factors to 8 bits."""

    weight_IO: torch.Tensor
    scale_O: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI, scale_O1 = rounded(linear.weight.detach())
        self.register_buffer("weight_IO", (weight_OI.char() if is_fast() else weight_OI).t())
        self.register_buffer("scale_O", scale_O1[:, 0])
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_NI, scale_N1 = rounded(x.flatten(0, -2))
        y_NO = product(x_NI, self.weight_IO).mul_(scale_N1).mul_(self.scale_O)
        if self.bias is not None:
            y_NO += self.bias
        return y_NO.view(*x.shape[:-1], -1)


def rounded(x_RI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers -127..127 [R, I] and scales [R, 1] whose products are nearest to each row."""
    # Twice over x, and still less than to write its absolute values down first.
    least_R1, greatest_R1 = x_RI.amin(1, keepdim=True), x_RI.amax(1, keepdim=True)
    scale_R1 = torch.maximum(-least_R1, greatest_R1).clamp_(min=TINY) / LARGEST
    return (x_RI / scale_R1).round_(), scale_R1


def product(x_NI: torch.Tensor, weight_IO: torch.Tensor) -> torch.Tensor:
    """float32 [N, O] of whole numbers."""
    if weight_IO.dtype != torch.int8:
        return x_NI @ weight_IO
    return torch._int_mm(x_NI.char(), weight_IO).float()


@functools.cache
def is_fast() -> bool:
    """Whether 8-bit products pay on this processor. Tried: no list of processors stays true."""
    x = torch.ones(64, 256)
    x_8 = x.char()
    return _seconds(lambda: torch._int_mm(x_8, x_8.t())) < _seconds(lambda: x @ x.t())


def _seconds(do: Callable[[], torch.Tensor]) -> float:
    """The best of a few."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        do()
        times.append(time.perf_counter() - start)
    return min(times)


def quantise(encoder: nn.Module) -> None:
    """Replace every linear layer of the encoder's stacks, in place."""
    for stack in [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]:
        for parent in list(stack.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Linear8(child))
