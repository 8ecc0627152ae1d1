"""loss.py: numbers checked by hand, and the chunked loss against the whole matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rocketray.model.loss import contrastive_loss, pointwise_loss


def test_two_orthogonal_pairs() -> None:
    loss = contrastive_loss(torch.eye(2), torch.eye(2), torch.arange(2))
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-1)))  # 2 * 0.3133


def test_a_masked_column_is_not_there() -> None:
    mask = torch.tensor([[False, True], [False, False]])
    loss = contrastive_loss(torch.eye(2), torch.eye(2), torch.arange(2), mask=mask)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))  # Row 0 sees itself only: 0.


def test_temperature_divides_the_scores() -> None:
    loss = contrastive_loss(torch.eye(2), torch.eye(2), torch.arange(2), temperature=0.5)
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-2)))


def test_ten_thousand_equal_columns() -> None:
    q_BD, p_GD = torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(10_000, 4, dtype=torch.bfloat16)
    loss = contrastive_loss(q_BD, p_GD, torch.tensor([3]))
    assert loss.dtype == torch.float32  # In bfloat16 the sum of 10,000 ones stops at 256.
    assert loss.item() == pytest.approx(math.log(10_000), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 100])
@pytest.mark.parametrize("masked", ["none", "tensor", "function"])
def test_chunks_equal_the_whole_matrix(chunk: int, masked: str) -> None:
    torch.manual_seed(0)
    q_BD = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    p_GD = torch.randn(21, 5, dtype=torch.float64, requires_grad=True)
    positives_B = torch.arange(7) * 3
    mask_BG = torch.rand(7, 21) < 0.3
    mask_BG[torch.arange(7), positives_B] = False
    mask: Any = {
        "none": None,
        "tensor": mask_BG,
        "function": lambda start, stop: mask_BG[start:stop],
    }[masked]

    fast = contrastive_loss(q_BD, p_GD, positives_B, mask=mask, temperature=0.7, chunk=chunk)
    fast_gradients = torch.autograd.grad(fast, (q_BD, p_GD))
    logits_BG = q_BD @ p_GD.T / 0.7
    if mask is not None:
        logits_BG = logits_BG.masked_fill(mask_BG, -torch.inf)
    slow = F.cross_entropy(logits_BG, positives_B, reduction="sum")
    slow_gradients = torch.autograd.grad(slow, (q_BD, p_GD))

    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(fast_gradients, slow_gradients, rtol=1e-12, atol=1e-14)


def test_no_rows_still_send_a_gradient() -> None:
    q_BD, p_GD = torch.empty(0, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    loss = contrastive_loss(q_BD, p_GD, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert p_GD.grad is not None
    assert not p_GD.grad.any()


def test_pointwise_loss_is_a_sum_of_logs() -> None:
    loss = pointwise_loss(torch.tensor([0.0, math.log(3)]), torch.tensor([True, False]))
    assert loss.item() == pytest.approx(math.log(2) + math.log(4))  # sigmoid(log 3) = 3/4


def test_one_logit_equals_the_papers_softmax_over_two_classes() -> None:
    logits_B2 = torch.tensor([[0.3, -1.2], [2.0, 2.5]])
    labels_B = torch.tensor([1, 0])
    one = pointwise_loss(logits_B2[:, 1] - logits_B2[:, 0], labels_B)
    assert one.item() == pytest.approx(F.cross_entropy(logits_B2, labels_B, reduction="sum").item())
