"""loss.py: numbers checked by hand, and the chunked loss against the whole matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rocketray.model.loss import (
    contrastive_loss,
    kl_loss,
    listwise_loss,
    margin_mse_loss,
    passage_loss,
    pointwise_loss,
)


def test_two_orthogonal_pairs() -> None:
    loss = contrastive_loss(torch.eye(2), torch.eye(2), torch.arange(2)).loss
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-1)))  # 2 * 0.3133


def test_a_masked_column_is_not_there() -> None:
    mask = torch.tensor([[False, True], [False, False]])
    loss = contrastive_loss(torch.eye(2), torch.eye(2), torch.arange(2), mask=mask).loss
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))  # Row 0 sees itself only: 0.


def test_temperature_divides_the_scores() -> None:
    loss = contrastive_loss(torch.eye(2), torch.eye(2), torch.arange(2), temperature=0.5).loss
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-2)))


def test_ten_thousand_equal_columns() -> None:
    q_BD, p_GD = torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(10_000, 4, dtype=torch.bfloat16)
    loss = contrastive_loss(q_BD, p_GD, torch.tensor([3])).loss
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

    fast = contrastive_loss(q_BD, p_GD, positives_B, mask=mask, temperature=0.7, chunk=chunk).loss
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
    loss = contrastive_loss(q_BD, p_GD, torch.empty(0, dtype=torch.int64)).loss
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


def test_what_there_is_to_watch() -> None:
    q_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p_GD = torch.tensor([[0.5, 0.0], [0.9, 0.0], [0.0, 0.7]])
    told = contrastive_loss(q_BD, p_GD, torch.tensor([0, 2]), temperature=0.1)
    assert told.positive.item() == pytest.approx(0.5 + 0.7)
    assert told.hardest.item() == pytest.approx(0.9 + 0.0)
    assert told.close.item() == 0
    lonely = contrastive_loss(q_BD[:1], p_GD[:1], torch.tensor([0]))
    assert (lonely.loss.item(), lonely.hardest.item()) == (0, 0)


def test_a_margin_masks_what_is_clearly_nearer_than_the_positive() -> None:
    q_BD = torch.tensor([[1.0, 0.0]])
    p_GD = torch.tensor(
        [[0.5, 0.0], [0.61, 0.0], [0.59, 0.0]]
    )  # Margin 0.1: 0.61 goes, 0.59 stays.
    told = contrastive_loss(q_BD, p_GD, torch.tensor([0]), margin=0.1, temperature=0.5)
    assert told.close.item() == 1
    assert told.loss.item() == pytest.approx(math.log(1 + math.exp(0.09 / 0.5)), rel=1e-5)
    assert told.hardest.item() == pytest.approx(0.59)


def test_large_logits_do_not_overflow() -> None:
    q_BD, p_GD = torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.5]])
    assert contrastive_loss(q_BD, p_GD, torch.tensor([0])).loss.item() == 0
    assert contrastive_loss(q_BD, p_GD, torch.tensor([1])).loss.item() == 500


def test_the_gradient_is_scaled_by_what_comes_from_above() -> None:
    q_BD = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    p_GD = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def scaled(factor: float) -> tuple[torch.Tensor, ...]:
        loss = contrastive_loss(q_BD, p_GD, torch.arange(3), chunk=2).loss * factor
        return torch.autograd.grad(loss, (q_BD, p_GD))

    for once, thrice in zip(scaled(1.0), scaled(3.0), strict=True):
        torch.testing.assert_close(3 * once, thrice)


def test_a_second_derivation_is_refused() -> None:
    q_BD = torch.ones(1, 2, requires_grad=True)
    loss = contrastive_loss(q_BD, torch.eye(2), torch.tensor([0])).loss
    torch.autograd.grad(loss, q_BD, retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(loss, q_BD)


def test_passage_term_of_two_orthogonal_pairs() -> None:
    # Own query: 1. The other passage: 0.
    loss = passage_loss(torch.eye(2), torch.eye(2), torch.arange(2))
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-1)))


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_passage_term_equals_a_dense_one(chunk: int) -> None:
    torch.manual_seed(1)
    q_BD = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    p_GD = torch.randn(21, 5, dtype=torch.float64, requires_grad=True)
    positives_B = torch.arange(7) * 3
    mask_BG = torch.rand(7, 21) < 0.3
    mask_BG[torch.arange(7), positives_B] = False
    fast = passage_loss(q_BD, p_GD, positives_B, mask=mask_BG, temperature=0.7, chunk=chunk)
    own_B1 = (q_BD * p_GD[positives_B]).sum(1, keepdim=True)
    others_BG = (p_GD[positives_B] @ p_GD.T).masked_fill(mask_BG, -torch.inf)
    others_BG = others_BG.scatter(1, positives_B[:, None], -torch.inf)
    logits = torch.cat([own_B1, others_BG], 1) / 0.7
    slow = F.cross_entropy(logits, torch.zeros(7, dtype=torch.int64), reduction="sum")
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(fast, (q_BD, p_GD)),
        torch.autograd.grad(slow, (q_BD, p_GD)),
        rtol=1e-11, atol=1e-13,
    )  # fmt: skip


def sigmoid(*logits: float) -> torch.Tensor:
    return torch.sigmoid(torch.tensor([logits], dtype=torch.float64))


def test_kl_by_hand() -> None:
    # The teacher is sure by log 3: (3/4, 1/4). The student does not know: (1/2, 1/2).
    ce_BS, flat_BS = sigmoid(math.log(3), 0.0), torch.zeros(1, 2, dtype=torch.float64)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_loss(flat_BS, ce_BS).item() == pytest.approx(expected)
    agreed_BS = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    assert kl_loss(agreed_BS, ce_BS).item() == pytest.approx(0, abs=1e-12)
    halved_BS = agreed_BS / 2  # At temperature 1/2 they agree again.
    assert kl_loss(halved_BS, ce_BS, temperature=0.5).item() == pytest.approx(0, abs=1e-12)


def test_kl_leaves_out_what_was_not_scored() -> None:
    nan = math.nan
    ce_BS = torch.cat(
        [sigmoid(math.log(3), 0.0, nan), sigmoid(1.0, nan, nan), sigmoid(nan, nan, nan)]
    )
    similarities_BS = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    loss = kl_loss(similarities_BS, ce_BS)
    assert loss.item() == pytest.approx(
        kl_loss(torch.zeros(1, 2), sigmoid(math.log(3), 0.0)).item()
    )
    (gradient,) = torch.autograd.grad(loss, similarities_BS)
    torch.testing.assert_close(  # student minus teacher where both are known
        gradient, torch.tensor([[-0.25, 0.25, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    )


def test_margin_mse_by_hand() -> None:
    # Margins of the teacher: 2 and unknown; of the student: 1 and 5.
    ce_BS = sigmoid(2.0, 0.0, math.nan)
    similarities_BS = torch.tensor([[3.0, 2.0, -2.0]], dtype=torch.float64, requires_grad=True)
    loss = margin_mse_loss(similarities_BS, ce_BS)
    assert loss.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(loss, similarities_BS)
    assert gradient.tolist() == [pytest.approx([-2.0, 2.0, 0.0])]
    both = margin_mse_loss(similarities_BS, sigmoid(2.0, 0.0, -2.0))
    assert both.item() == pytest.approx((1 + 1) / 2)  # Gaps 1 - 2 and 5 - 4.


def test_listwise_by_hand() -> None:
    loss = listwise_loss(torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]))
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(2))
