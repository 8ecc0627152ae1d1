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
from collections.abc import Callable, Sequence

import torch
from torch import nn

LARGEST, ZERO = 127, 128
"""Of whole numbers the largest, and what stands for none: they are kept as uint8, from 1 to 255."""
TINY = 1e-12
"""Keeps the scale of a row of zeros from dividing by zero."""


class Linear8(nn.Module):
    """Stands for an `nn.Linear`, to within the rounding of both factors to 8 bits."""

    scale_O: torch.Tensor
    bias_O: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI, scale_O1 = rounded(linear.weight.detach())
        weight_OI = (weight_OI.int() - ZERO).char()
        self.register_buffer("scale_O", scale_O1[:, 0].contiguous())
        bias = linear.bias
        self.register_buffer("bias_O", scale_O1.new_zeros(()) if bias is None else bias.detach())
        self.multiply = product_by(weight_OI)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of(*rounded(x.flatten(0, -2))).view(*x.shape[:-1], -1)

    def of(self, x_NI: torch.Tensor, scale_N1: torch.Tensor) -> torch.Tensor:
        """[N, O] of rows that are rounded."""
        y_NO = self.multiply(x_NI, self.scale_O)
        return torch.addcmul(self.bias_O, y_NO, scale_N1, out=y_NO)


def linears(layers: Sequence[Linear8], x_NI: torch.Tensor) -> list[torch.Tensor]:
    """What several layers make of one x, [N, O] each, which is rounded once."""
    rows = rounded(x_NI)
    return [layer.of(*rows) for layer in layers]


def rounded(x_RI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers, uint8 [R, I] around `ZERO`, and scales [R, 1], whose products are nearest to
    each row. What is equally near to two goes up."""
    # Twice over x, and still less than to write its absolute values down first.
    least_R1, greatest_R1 = x_RI.amin(1, keepdim=True), x_RI.amax(1, keepdim=True)
    scale_R1 = torch.maximum(-least_R1, greatest_R1).clamp_(min=TINY) / LARGEST
    return (x_RI * scale_R1.reciprocal()).add_(ZERO + 0.5).byte(), scale_R1


class Exact:
    """Products of whole numbers in float32."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self.weight_IO = weight_OI.float().t()

    def __call__(self, x_NI: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
        return ((x_NI.float() - ZERO) @ self.weight_IO).mul_(scale_O)


class Fast:
    """The same by the processor's instructions for bytes, through oneDNN: its sums are whole, and
    come out scaled, in float32. (Signed bytes on both sides take `torch._int_mm`, whose sums come
    out as integers, to be gone over twice more; here they are computed without any such kernel.)"""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(weight_OI, None)
        self.zeros_O = torch.zeros(len(weight_OI), dtype=torch.int64)

    def __call__(self, x_NI: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
        y_NO: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x_NI, 1.0, ZERO, self.packed, scale_O, self.zeros_O, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return y_NO


def product_by(weight_OI: torch.Tensor) -> Fast | Exact:
    """The product with these whole numbers, int8, that this processor is best at."""
    return Fast(weight_OI) if is_fast() else Exact(weight_OI)


@functools.cache
def is_fast() -> bool:
    """Whether 8-bit products are right and pay on this processor. Tried: no list of processors
    stays true, and older ones add pairs of bytes in 16 bits, in which large ones have no room."""
    x, weight = torch.full((64, 1024), 255, dtype=torch.uint8), torch.full((256, 1024), 127)
    scale = torch.ones(256)
    exact = Exact(weight)
    try:
        fast = Fast(weight.char())
        right = torch.equal(fast(x, scale), exact(x, scale))
    except (AttributeError, RuntimeError):  # A torch without oneDNN.
        return False
    return right and _seconds(lambda: fast(x, scale)) < _seconds(lambda: exact(x, scale))


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
