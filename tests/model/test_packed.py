"""Rows without padding give what the model itself gives for a padded batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from rocketray.model import packed
from rocketray.model.dual_encoder import pool

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
MASK = torch.tensor([[1] * 6, [1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3, [1] * 3 + [0] * 3])
LENGTHS = [6, 6, 4, 3, 3]


def encoder(family: str) -> Any:
    torch.manual_seed(0)
    if family == "bert":
        return BertModel(BertConfig(**SIZES), add_pooling_layer=False).double().eval()
    return RobertaModel(RobertaConfig(**SIZES), add_pooling_layer=False).double().eval()


def batch(padding: int, *, types: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, MASK.shape, generator=generator).masked_fill(MASK == 0, padding)
    made = {"input_ids": ids, "attention_mask": MASK}
    if types:
        made["token_type_ids"] = (torch.arange(6) > 2).long().expand(MASK.shape)
    return made


def test_rows_lie_end_to_end() -> None:
    model = encoder("bert")
    rows = packed.pack(model, batch(0))
    assert rows.starts_B.tolist() == [0, 6, 12, 16, 19, 22]
    assert rows.runs == [(2, 6), (1, 4), (2, 3)]
    assert rows.positions_N.tolist() == [n for length in LENGTHS for n in range(length)]
    assert rows.ids_N.tolist() == batch(0)["input_ids"][MASK.bool()].tolist()


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@torch.inference_mode()
def test_equals_the_model(family: str, types: bool) -> None:
    model = encoder(family)
    padded = batch(model.config.pad_token_id, types=types and family == "bert")
    whole_BTD = model(**padded).last_hidden_state
    rows = packed.pack(model, padded)
    found_ND = packed.encode(model, rows)
    torch.testing.assert_close(found_ND, whole_BTD[MASK.bool()], rtol=1e-12, atol=1e-12)
    first_BD = packed.encode(model, rows, first_only=True)
    torch.testing.assert_close(first_BD, whole_BTD[:, 0], rtol=1e-12, atol=1e-12)
    for pooling in ("cls", "mean", "last"):
        expected = pool(whole_BTD, MASK, pooling).float()
        torch.testing.assert_close(packed.pooled(model, rows, pooling), expected)


@torch.inference_mode()
def test_rows_need_no_order() -> None:
    model = encoder("bert")
    order = torch.tensor([3, 0, 2, 4, 1])
    shuffled = {name: tensor[order] for name, tensor in batch(0).items()}
    rows = packed.pack(model, shuffled)
    expected = model(**shuffled).last_hidden_state[:, 0]
    found = packed.encode(model, rows, first_only=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_a_padding_token_within_a_text_shifts_robertas_positions_as_in_the_model() -> None:
    model = encoder("roberta")
    padded = batch(model.config.pad_token_id, types=False)
    padded["input_ids"][0, 2] = model.config.pad_token_id
    expected = model(**padded).last_hidden_state[:, 0]
    found = packed.encode(model, packed.pack(model, padded), first_only=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [26, 264])
def test_the_flash_kernel_is_not_asked_for_other_heads(size: int) -> None:
    assert not packed._has_flash(torch.device("cuda"), torch.bfloat16, size)


@torch.inference_mode()
def test_half_precision_stays_near() -> None:
    model = encoder("bert")
    rows = packed.pack(model, batch(0))
    exact = packed.encode(model, rows)
    near = packed.encode(model.to(torch.bfloat16), rows)
    assert near.dtype == torch.bfloat16
    assert torch.cosine_similarity(near.double(), exact).min() > 0.999
