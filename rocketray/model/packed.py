"""BERT-like encoders over rows laid end to end, for inference: no padding, no mask.

A padded batch multiplies its padding, and a mask keeps attention from its fastest kernels. Here
all products run over the real tokens of a batch, one after another, and attention runs over rows
of equal length (they follow one another, as batches are sorted by length), or on a GPU in half
precision over all rows at once by torch's variable-length flash attention. The weights are the
model's own modules, so the numbers are the model's to rounding.
"""

# Shapes: N tokens of all rows, B rows, T tokens of the longest, D hidden size, H heads, d = D / H.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from rocketray.model.first_token import supports
from rocketray.model.products import attend, linear, linears
from rocketray.model.tokens import Batch

__all__ = ["Rows", "encode", "moved", "pack", "pooled", "supports"]

Pooling = Literal["cls", "mean", "last"]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries (of all tokens or of first tokens), keys and values [N, H, d] to contexts."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a batch, one after another."""

    ids_N: torch.Tensor
    positions_N: torch.Tensor
    types_N: torch.Tensor | None
    starts_B: torch.Tensor
    """int32 [B + 1]: where each row begins, and where the last one ends."""
    runs: list[tuple[int, int]]
    """Rows in a row that are equally long: how many, and how long."""

    def to(self, device: torch.device) -> Rows:
        """On another device; nothing waits for the copies."""
        return Rows(
            ids_N=moved(self.ids_N, device),
            positions_N=moved(self.positions_N, device),
            types_N=None if self.types_N is None else moved(self.types_N, device),
            starts_B=moved(self.starts_B, device),
            runs=self.runs,
        )


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the device. From pinned memory the copy does not wait for earlier kernels."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pack(tower: PreTrainedModel, batch: Batch) -> Rows:
    """Lay the rows of a padded batch (on the CPU) end to end."""
    mask_BT = batch["attention_mask"].bool()
    lengths_B = mask_BT.sum(1)
    lengths, counts = torch.unique_consecutive(lengths_B, return_counts=True)
    types = batch.get("token_type_ids")
    return Rows(
        ids_N=batch["input_ids"][mask_BT],
        positions_N=_positions(tower, batch["input_ids"])[mask_BT],
        types_N=None if types is None else types[mask_BT],
        starts_B=nn.functional.pad(lengths_B.cumsum(0), (1, 0)).int(),
        runs=list(zip(counts.tolist(), lengths.tolist(), strict=True)),
    )


def _positions(tower: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    padding = tower.embeddings.position_embeddings.padding_idx
    if padding is None:
        return torch.arange(ids_BT.shape[1]).expand(ids_BT.shape)
    # RoBERTa counts from there, and skips padding wherever it stands.
    real_BT = (ids_BT != padding).long()
    positions_BT: torch.Tensor = real_BT.cumsum(1) * real_BT + padding
    return positions_BT


def encode(tower: Any, rows: Rows, *, first_only: bool = False) -> torch.Tensor:
    """The last hidden states of all tokens, h_ND, or of the first ones, h_BD (see first_token)."""
    types = None if rows.types_N is None else rows.types_N[None]
    h_ND: torch.Tensor = tower.embeddings(
        input_ids=rows.ids_N[None], token_type_ids=types, position_ids=rows.positions_N[None]
    )[0]
    layers = tower.encoder.layer
    size = layers[0].attention.self.attention_head_size
    flash = _has_flash(rows.starts_B.device, h_ND.dtype, size)
    whole = _attention(rows, flash)
    for layer in layers[:-1] if first_only else layers:
        h_ND = _layer(layer, h_ND, h_ND, whole)
    if not first_only:
        return h_ND
    first_BD = h_ND[rows.starts_B[:-1].long()]
    return _layer(layers[-1], first_BD, h_ND, _attention(rows, flash, first_only=True))


def pooled(tower: PreTrainedModel, rows: Rows, pooling: Pooling) -> torch.Tensor:
    """One vector per row, float32 [B, D]."""
    if pooling == "cls":
        return encode(tower, rows, first_only=True).float()
    h_ND = encode(tower, rows).float()
    if pooling == "last":
        return h_ND[rows.starts_B[1:].long() - 1]
    parts = h_ND.split([count * length for count, length in rows.runs])
    means = [
        part.unflatten(0, (count, -1)).mean(1)
        for part, (count, _) in zip(parts, rows.runs, strict=True)
    ]
    return torch.cat(means)


def _layer(layer: Any, asking: torch.Tensor, h_ND: torch.Tensor, context: Attend) -> torch.Tensor:
    """One layer's output for the tokens that ask: [N, D] or [B, D]."""
    own, out, inner = layer.attention.self, layer.attention.output, layer.intermediate

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), own.num_attention_heads, -1)

    found = context(*(heads(x) for x in _asked(own, asking, h_ND)))
    # In place, what can be: a fresh tensor of this size costs a CPU its page faults.
    attended = out.LayerNorm(linear(out.dense, found.flatten(1)).add_(asking))
    wide = _activated(inner.intermediate_act_fn, linear(inner.dense, attended))
    result: torch.Tensor = layer.output.LayerNorm(linear(layer.output.dense, wide).add_(attended))
    return result


def _activated(act: Callable[[torch.Tensor], torch.Tensor], wide: torch.Tensor) -> torch.Tensor:
    if getattr(act, "act", None) is nn.functional.gelu:  # Nearly every model's.
        return torch.ops.aten.gelu_(wide)  # type: ignore[no-any-return]
    return act(wide)


def _asked(own: Any, asking: torch.Tensor, h_ND: torch.Tensor) -> Sequence[torch.Tensor]:
    """Queries of the tokens that ask, keys and values of all."""
    if asking is h_ND:
        return linears([own.query, own.key, own.value], h_ND)
    return [linear(own.query, asking), *linears([own.key, own.value], h_ND)]


def _attention(rows: Rows, flash: bool, *, first_only: bool = False) -> Attend:
    """Attention within each row, for queries of all tokens or of each row's first."""
    if flash:
        return _by_flash(rows, first_only)

    def by_runs(q: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor) -> torch.Tensor:
        context = torch.empty_like(q)
        at = start = 0
        for count, length in rows.runs:
            asking = 1 if first_only else length
            mine, all_ = slice(at, at + count * asking), slice(start, start + count * length)
            attend(
                *(
                    x.unflatten(0, (count, -1)).transpose(1, 2)
                    for x in (q[mine], k_NHd[all_], v_NHd[all_], context[mine])
                )
            )
            at, start = mine.stop, all_.stop
        return context

    return by_runs


def _has_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    half = dtype in (torch.bfloat16, torch.float16)
    if head_size % 8 or head_size > 256:  # What the kernel takes; torch pads for its own attention.
        return False
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _by_flash(rows: Rows, first_only: bool) -> Attend:
    from torch.nn.attention.varlen import varlen_attn

    starts_B = rows.starts_B
    longest = max(length for _, length in rows.runs)
    asking_B = starts_B if not first_only else _counted(starts_B)
    most = 1 if first_only else longest

    def flash(q: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor) -> torch.Tensor:
        context: Any = varlen_attn(q, k_NHd, v_NHd, asking_B, starts_B, most, longest)
        assert isinstance(context, torch.Tensor)
        return context

    return flash


def _counted(starts_B: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(starts_B), dtype=torch.int32, device=starts_B.device)
