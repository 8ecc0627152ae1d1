from __future__ import annotations

import pytest
import torch
from torch import nn

from rocketray.model import int8
from rocketray.model.products import linear, linears, multiply


@pytest.fixture
def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(5, 3), nn.Linear(5, 4)]


def test_a_product_by_hand() -> None:
    out = torch.empty(2, 1)
    multiply(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 1.0]]), out)
    assert out.tolist() == [[12.0], [34.0]]


def test_layers_together_are_the_layers(layers: list[nn.Linear]) -> None:
    x = torch.randn(7, 5)
    with torch.inference_mode():
        first, second = linears(layers, x)
        torch.testing.assert_close(first, layers[0](x))
        torch.testing.assert_close(second, layers[1](x))
        torch.testing.assert_close(linear(layers[1], x), layers[1](x))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(layers: list[nn.Linear], rows: int) -> None:
    found = linears(layers, torch.ones(rows, 5))
    assert [tuple(y.shape) for y in found] == [(rows, 3), (rows, 4)]


def test_infinity_passes_without_a_warning(layers: list[nn.Linear]) -> None:
    assert not linear(layers[0], torch.full((1, 5), torch.inf)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_left_to_the_layer(
    layers: list[nn.Linear], dtype: torch.dtype
) -> None:
    layer, x = layers[0].to(dtype), torch.randn(2, 5, dtype=dtype)
    assert torch.equal(linear(layer, x), layer(x))


def test_what_is_no_plain_layer_is_called(layers: list[nn.Linear]) -> None:
    x = torch.randn(2, 5)
    in_8 = int8.Linear8(layers[0])
    without_bias = nn.Linear(5, 3, bias=False)
    for layer in (in_8, without_bias):
        assert torch.equal(linear(layer, x), layer(x))
