from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from rocketray.model import int8, products
from rocketray.model.products import attend, linear, linears, multiply
from rocketray.model.threads import set_threads


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


def test_attention_by_hand() -> None:
    """A row's two tokens, one head of one dimension: e^0 and e^ln 3, so shares of a quarter and
    three. The other row has other values, and the place is a part of something larger."""
    q, k = torch.tensor([1.0, 0.0]), torch.tensor([0.0, math.log(3)])
    place = torch.zeros(2, 1, 2, 3)
    rows = (x.view(1, 1, 2, 1).expand(2, 1, 2, 1) for x in (q, k))
    v = torch.tensor([[0.0, 4.0], [8.0, 16.0]]).view(2, 1, 2, 1)
    attend(*rows, v, place[..., 1:2])
    torch.testing.assert_close(place[..., 1].flatten(), torch.tensor([3.0, 2.0, 14.0, 12.0]))
    assert not place[..., ::2].any()


@pytest.mark.parametrize("asking", [1, 7])
def test_attention_is_torchs_in_pieces_and_by_several_threads(
    monkeypatch: pytest.MonkeyPatch, asking: int
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, n, 2, 4).transpose(1, 2) for n in (asking, 7, 7))
    expected = scaled_dot_product_attention(q, k, v)
    threads = torch.get_num_threads()
    for count, some in ((1, 1), (1, 2 * asking * 7 * 2), (1, 1 << 18), (2, 1)):
        monkeypatch.setattr(products, "SCORES", some)
        found = torch.empty_like(q)
        set_threads(count)
        try:
            attend(q, k, v, found)
        finally:
            set_threads(threads)
        torch.testing.assert_close(found, expected)
