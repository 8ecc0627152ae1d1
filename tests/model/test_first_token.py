"""The shortcut gives what the whole model gives: values and gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from rocketray.model.first_token import first_token, supports

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def encoder(family: str) -> BertModel | RobertaModel:
    torch.manual_seed(0)
    if family == "bert":
        return BertModel(BertConfig(**SIZES), add_pooling_layer=False).double().eval()
    return RobertaModel(RobertaConfig(**SIZES), add_pooling_layer=False).double().eval()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_equals_the_whole_model(family: str) -> None:
    model = encoder(family)
    assert supports(model)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    batch = {"input_ids": torch.randint(3, 50, (2, 6)), "attention_mask": mask}
    batch["input_ids"][mask == 0] = model.config.pad_token_id
    whole = model(**batch).last_hidden_state[:, :1]
    short = first_token(model, batch)
    torch.testing.assert_close(short, whole, rtol=1e-12, atol=1e-12)

    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(whole.square().sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(short.square().sum(), parameters, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_token_types_count() -> None:
    model = encoder("bert")
    ids = torch.tensor([[4, 5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    typed = {**batch, "token_type_ids": torch.tensor([[0, 0, 1, 1]])}
    whole = model(**typed).last_hidden_state[:, :1]
    torch.testing.assert_close(first_token(model, typed), whole, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first_token(model, batch), whole)
