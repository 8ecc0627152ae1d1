"""8-bit layers: what can be said exactly, exactly; the rest to within their rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from rocketray.model import int8
from rocketray.model.int8 import Linear8, quantise, rounded


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data = torch.tensor(weight)
    layer.bias.data = torch.tensor(bias)
    return layer


def test_numbers_on_the_grid_are_exact() -> None:
    layer = linear([[127.0, -1.0], [0.0, 63.5]], [0.5, 0.0])
    x = torch.tensor([[127.0, 2.0], [0.0, 0.0], [-1.27, 0.01]])
    with torch.inference_mode():
        torch.testing.assert_close(Linear8(layer)(x), layer(x))


def test_each_row_has_its_own_scale() -> None:
    values, scales = rounded(torch.tensor([[1.0, -0.5], [1000.0, 4.0], [0.0, 0.0]]))
    assert values.dtype == torch.uint8
    assert (values.int() - 128).tolist() == [[127, -63], [127, 1], [0, 0]]  # Halves go up.
    torch.testing.assert_close(scales[:, 0], torch.tensor([1 / 127, 1000 / 127, 1e-12 / 127]))


def test_the_error_is_that_of_the_rounding() -> None:
    """Each factor is off by at most half a step, so a product of I terms by at most so much."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(10, 5, 64)
    with torch.inference_mode():
        error = (Linear8(layer)(x) - layer(x)).abs()
    w_step = layer.weight.abs().amax(1) / int8.LARGEST / 2
    x_step = x.abs().amax(2, keepdim=True) / int8.LARGEST / 2
    bound = x.abs().sum(2, keepdim=True) * w_step + x_step * layer.weight.abs().sum(1)
    assert (error <= bound + 64 * x_step * w_step).all()
    assert error.max() > 0


def test_both_products_of_the_same_integers_are_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 256, (40, 1024), generator=generator, dtype=torch.uint8)
    w = torch.randint(-127, 128, (24, 1024), generator=generator, dtype=torch.int8)
    scale = torch.rand(24, generator=generator)
    exact = int8.Exact(w)(x, scale)
    by_hand = ((x.double() - 128) @ w.double().T).float() * scale
    assert torch.equal(exact, by_hand)
    if int8.is_fast():
        assert torch.equal(int8.Fast(w)(x, scale), exact)


def test_layers_of_one_x_are_what_each_makes_of_it() -> None:
    torch.manual_seed(0)
    layers, x = [Linear8(nn.Linear(64, size)) for size in (32, 8)], torch.randn(10, 64)
    for found, layer in zip(int8.linears(layers, x), layers, strict=True):
        assert torch.equal(found, layer(x))


def test_a_layer_without_a_bias() -> None:
    layer = linear([[127.0, -1.0]], [0.0])
    layer.bias = None
    with torch.inference_mode():
        assert Linear8(layer)(torch.tensor([[127.0, 2.0]])).item() == 127 * 127 - 2


def test_what_is_no_number_stays_none() -> None:
    layer = Linear8(nn.Linear(3, 2))
    for value in (torch.nan, torch.inf):
        assert not layer(torch.tensor([[1.0, value, 2.0]])).isfinite().any()


def test_a_whole_encoder_stays_near() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128,
    )  # fmt: skip
    model = BertModel(config).eval()
    ids = torch.randint(0, 50, (8, 12))
    with torch.inference_mode():
        exact = model(ids).last_hidden_state
        quantise(model)
        near = model(ids).last_hidden_state
    assert sum(isinstance(module, Linear8) for module in model.modules()) == 3 * 6
    assert isinstance(model.pooler.dense, nn.Linear)
    assert torch.cosine_similarity(near, exact, dim=-1).min() > 0.999
    assert not torch.equal(near, exact)


class Narrow:
    """Adds pairs of products in 16 bits, as processors without VNNI do: what has no room is cut."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self.weight_OI = weight_OI.int()

    def __call__(self, x_NI: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
        pairs = (x_NI.int().unsqueeze(1) * self.weight_OI).unflatten(2, (-1, 2)).sum(3)
        sums = pairs.clamp(-32768, 32767).sum(2) - 128 * self.weight_OI.sum(1)
        return sums.float() * scale_O


class Missing:
    def __init__(self, weight_OI: torch.Tensor) -> None:
        raise AttributeError("no such operator")


@pytest.mark.parametrize("instead", [Narrow, Missing])
def test_products_that_are_wrong_or_missing_are_not_taken(
    instead: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = torch.full((2, 4), 130, dtype=torch.uint8), torch.ones(3, 4).char(), torch.ones(3)
    if instead is Narrow:  # Right, where there is room.
        assert Narrow(small[1])(small[0], small[2]).tolist() == [[8.0] * 3] * 2
    monkeypatch.setattr(int8, "Fast", instead)
    assert not int8.is_fast.__wrapped__()
