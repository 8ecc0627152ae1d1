"""Products of float32 matrices on a CPU, by numpy's BLAS: faster there than torch's.

At the shapes of a BERT-like layer by 10 to 30 % on an AMD EPYC with AVX2, and twice as fast on one
with AVX-512, of which torch's BLAS makes no use there; by 12 % on a Xeon with AVX-512
(docs/lab-notes.md). Training stays with torch's, which autograd knows.
"""

# Shapes: N rows, I inputs, O outputs; B rows of text, H heads, T tokens that ask, L tokens in all,
# d size of a head.

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from rocketray.model import int8

SCORES = 1 << 17
"""Of attention, so many at once: with their shares a MiB, which stays in a core's own cache."""


def multiply(x_NI: torch.Tensor, w_OI: torch.Tensor, out_NO: torch.Tensor) -> None:
    """x_NI times w_OI transposed, into a place that is there."""
    if not _is_for_numpy(out_NO):
        torch.mm(x_NI, w_OI.T, out=out_NO)
        return
    with np.errstate(all="ignore"):  # NaN and infinity are the callers' to find.
        np.matmul(x_NI.numpy(), w_OI.numpy().T, out=out_NO.numpy())


def linear(layer: nn.Module, x_NI: torch.Tensor) -> torch.Tensor:
    """What a linear layer makes of x, [N, O], without gradients."""
    return linears([layer], x_NI)[0]


def linears(layers: Sequence[nn.Module], x_NI: torch.Tensor) -> Sequence[torch.Tensor]:
    """What several layers make of one x, [N, O] each. Together they are one product, which goes
    over x once; to lay their weights side by side costs a few thousandths of it."""
    eights = [layer for layer in layers if isinstance(layer, int8.Linear8)]
    if len(eights) == len(layers):
        return int8.linears(eights, x_NI)
    if not _is_for_numpy(x_NI) or not all(_is_plain(layer) for layer in layers):
        return [layer(x_NI) for layer in layers]
    weights, biases = (
        [getattr(layer, name).detach() for layer in layers] for name in ("weight", "bias")
    )
    y_NO = x_NI.new_empty(len(x_NI), sum(map(len, biases)))
    multiply(x_NI, _joined(weights), y_NO)
    parts: Sequence[torch.Tensor] = y_NO.add_(_joined(biases)).split([*map(len, biases)], dim=1)
    return parts


def attend(
    q_BHTd: torch.Tensor, k_BHLd: torch.Tensor, v_BHLd: torch.Tensor, out_BHTd: torch.Tensor
) -> None:
    """Attention of rows of equal length, without a mask, into a place that is there.

    By numpy for one thread alone: many small products make several threads of its BLAS and of torch
    wait for one another.
    """
    if not _is_for_numpy(out_BHTd) or torch.get_num_threads() > 1:
        out_BHTd.copy_(scaled_dot_product_attention(q_BHTd, k_BHLd, v_BHLd))
        return
    q_BHTd = q_BHTd * q_BHTd.shape[3] ** -0.5
    shape = (*q_BHTd.shape[1:3], k_BHLd.shape[2])
    some = min(len(q_BHTd), max(1, SCORES // math.prod(shape)))
    # Not in one place: torch would write shares elsewhere first, to be copied.
    scores_bHTL, shares_bHTL = q_BHTd.new_empty(2, some, *shape)
    with np.errstate(all="ignore"):
        parts = (x.split(some) for x in (q_BHTd, k_BHLd, v_BHLd, out_BHTd))
        for q, k, v, out in zip(*parts, strict=True):
            scores, shares = scores_bHTL[: len(q)], shares_bHTL[: len(q)]
            np.matmul(q.numpy(), k.transpose(2, 3).numpy(), out=scores.numpy())
            torch.softmax(scores, 3, out=shares)
            np.matmul(shares.numpy(), v.numpy(), out=out.numpy())


def _is_for_numpy(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _is_plain(layer: nn.Module) -> bool:
    """In float32 and with a bias: not rounded to 8 bits, nor what somebody put in its place."""
    return type(layer) is nn.Linear and layer.bias is not None and _is_for_numpy(layer.weight)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
