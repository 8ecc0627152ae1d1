"""The losses, as pure functions of tensors. They know of no workers.

The gradient contract. Let R be the rows of the global batch. Each worker computes the SUM of the
losses of its own rows, divided by R (not by its own number of rows), against the passages of all
workers (gather.py carries the gradient back to their owners), and the workers' gradients are then
SUMMED. That is the gradient of the mean over the global batch, exactly, for any number of workers
and any division of rows among them:

    sum over workers w of  d/dtheta (1/R) sum of loss_i, i in rows(w)   =   d/dtheta mean of loss_i

Averaging over W workers, as DistributedDataParallel does, gives the same if every worker's loss is
multiplied by W: mean of (W * x_w) = sum of x_w. With equal shares that is each worker's mean over
its own R/W rows. Both at once (own mean and a sum, or own mean and a factor W) is W times too
long; the sum needs no factor, and no assumption of equal shares, so it is what we do.
"""

# Shapes: B queries, S passages of one example (the positive first), G passages of all examples
# (columns), C rows of a chunk, D embedding size.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

Mask = torch.Tensor | Callable[[int, int], torch.Tensor]
"""bool [B, G], or a function of a row range that makes [stop - start, G]; True = no column."""


class Contrast(NamedTuple):
    """Sums over rows. Only `loss` has a gradient."""

    loss: torch.Tensor
    positive: torch.Tensor
    """Similarity of each row's positive."""
    hardest: torch.Tensor
    """Similarity of the most similar other column; 0 for a row that has none."""
    close: torch.Tensor
    """Columns that `margin` masked."""


def contrastive_loss(
    q_BD: torch.Tensor,
    p_GD: torch.Tensor,
    positives_B: torch.Tensor,
    *,
    mask: Mask | None = None,
    margin: float | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
) -> Contrast:
    """Sum over rows of the cross-entropy of each query's positive against its columns.

        loss_i = log sum_j exp(q_i p_j / t) - q_i p_+ / t        j over the columns row i may see

    RocketQA (arXiv 2010.08191): query to passages only.

    The logits exist for `chunk` rows at a time. As the loss is a sum, its gradient is known as
    soon as a chunk's logits are, up to one factor; so it is made then and there, and backward only
    multiplies. Recomputing the logits in backward (torch's checkpoint) would hold as little
    memory, and cost a third more multiplications. There is no second derivative.

    Args:
        q_BD: queries; B may be 0, and the gradient then flows all the same (as zeros).
        p_GD: all passages that compete, those of other workers included, with their gradient.
        positives_B: int64, the column of each query's positive.
        mask: columns a row must not see. A row's own positive must never be masked.
        margin: mask, too, what is more similar than the positive by more than this: likely a
            missing label (Qwen3-Embedding, arXiv 2506.05176, takes 0.1 and cosine).
        temperature: logits are inner products divided by this.
        chunk: rows whose logits exist at once.

    Returns:
        Sums and not means: the caller divides by the rows of the global batch.
    """
    return Contrast(
        *_Contrast.apply(q_BD, p_GD, None, positives_B, mask, margin, temperature, chunk)
    )


def passage_loss(
    q_BD: torch.Tensor,
    p_GD: torch.Tensor,
    positives_B: torch.Tensor,
    *,
    mask: Mask | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
) -> torch.Tensor:
    """PAIR's passage-centric term (arXiv 2108.06027): a positive is nearer to its query than to
    other passages.

        loss_i = log(exp(p_+ q_i / t) + sum_j exp(p_+ p_j / t)) - p_+ q_i / t

    with j over the other columns row i may see. Arguments and result as in `contrastive_loss`.
    """
    anchors_BD = p_GD[positives_B]
    own_B = (_wide(q_BD) * _wide(anchors_BD)).sum(1) / temperature
    loss: torch.Tensor = _Contrast.apply(
        anchors_BD, p_GD, own_B, positives_B, mask, None, temperature, chunk
    )[0]
    return loss


class _Contrast(torch.autograd.Function):
    """Forward makes the gradient too, chunk by chunk. `own_B` replaces the positive's logit."""

    @staticmethod
    def forward(
        ctx: Any, a_BD: torch.Tensor, p_GD: torch.Tensor, own_B: torch.Tensor | None,
        positives_B: torch.Tensor, mask: Mask | None, margin: float | None, temperature: float,
        chunk: int,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        wide_GD = _wide(p_GD)
        sums_4 = wide_GD.new_zeros(4)
        da_BD, dp_GD = torch.zeros_like(_wide(a_BD)), torch.zeros_like(wide_GD)
        down_B = None if own_B is None else torch.zeros_like(own_B)
        for start in range(0, len(a_BD), chunk):
            rows = slice(start, min(start + chunk, len(a_BD)))
            a_CD = _wide(a_BD[rows]) / temperature
            logits_CG = a_CD @ wide_GD.T
            places_C1 = positives_B[rows, None]
            if own_B is not None:
                logits_CG.scatter_(1, places_C1, own_B[rows, None].to(logits_CG))
            if mask is not None:
                hidden_CG = mask[rows] if isinstance(mask, torch.Tensor) else mask(*_ends(rows))
                logits_CG.masked_fill_(hidden_CG, -torch.inf)
            sums_4 += _to_gradient(logits_CG, places_C1, margin, temperature)
            if down_B is not None:
                down_B[rows] = logits_CG.gather(1, places_C1)[:, 0].to(down_B)
                logits_CG.scatter_(1, places_C1, 0.0)
            torch.mm(logits_CG, wide_GD, out=da_BD[rows])
            dp_GD.addmm_(logits_CG.T, a_CD)
        ctx.gradients = da_BD.div_(temperature).to(a_BD), dp_GD.to(p_GD), down_B
        loss, *watched = sums_4.unbind()
        ctx.mark_non_differentiable(*watched)
        return loss.clone(), *watched

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("this loss can be differentiated once: compute it again.")
        # In place: they are as large as all embeddings, and nobody else holds them.
        gradients = [None if g is None else g.mul_(upstream[0]) for g in ctx.gradients]
        ctx.gradients = None
        return *gradients, None, None, None, None, None


def _to_gradient(
    logits_CG: torch.Tensor, places_C1: torch.Tensor, margin: float | None, temperature: float
) -> torch.Tensor:
    """Turn logits, in place, into the loss's gradient by them: softmax minus one at the positive.

    Returns:
        The four sums of `Contrast`.
    """
    positive_C1 = logits_CG.gather(1, places_C1)
    close = logits_CG.new_zeros(())
    if margin is not None:
        close_CG = logits_CG > positive_C1 + margin / temperature
        close += close_CG.sum()
        logits_CG.masked_fill_(close_CG, -torch.inf)
    logits_CG.scatter_(1, places_C1, -torch.inf)
    hardest_C = logits_CG.amax(1)
    logits_CG.scatter_(1, places_C1, positive_C1)
    # The largest logit is subtracted before exp, so nothing overflows.
    largest_C1 = torch.maximum(hardest_C[:, None], positive_C1)
    total_C1 = logits_CG.sub_(largest_C1).exp_().sum(1, keepdim=True)
    logits_CG.div_(total_C1)
    losses_C1 = total_C1.log() + largest_C1 - positive_C1
    logits_CG.scatter_add_(1, places_C1, -torch.ones_like(positive_C1))
    hardest = hardest_C.masked_fill(hardest_C == -torch.inf, 0.0).sum() * temperature
    return torch.stack([losses_C1.sum(), positive_C1.sum() * temperature, hardest, close])


def kl_loss(
    similarities_BS: torch.Tensor, ce_scores_BS: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Listwise distillation: sum over rows of KL(cross-encoder || dual encoder).

        KL_i = sum_s c_s (log c_s - log d_s),  c = softmax(logit(ce_score)),  d = softmax(q p / t)

    over each example's own passages (as RocketQAv2, arXiv 2110.07367, but from a
    teacher that stands still). Passages without a ce_score (NaN) take no part; a row needs two of
    them to teach anything.

    Args:
        similarities_BS: inner products of each query and its own passages.
        ce_scores_BS: probabilities; stored, without gradient.
    """
    known_BS = ~ce_scores_BS.isnan()
    teacher_BS = _logits(ce_scores_BS.to(similarities_BS)).masked_fill(~known_BS, -torch.inf)
    student_BS = (similarities_BS / temperature).masked_fill(~known_BS, -torch.inf)
    taught_B = known_BS.sum(1) >= 2
    # Rows that teach nothing are cut before the softmax: of -inf alone it is NaN, in gradients too.
    teacher_BS, student_BS = (
        teacher_BS[taught_B].log_softmax(1),
        student_BS[taught_B].log_softmax(1),
    )
    gap_BS = torch.where(known_BS[taught_B], teacher_BS - student_BS, 0.0)
    return (teacher_BS.exp() * gap_BS).sum()


def margin_mse_loss(
    similarities_BS: torch.Tensor, ce_scores_BS: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Sum over rows of the mean squared error of margins (Margin-MSE, arXiv 2010.02666).

        ((q p_+ - q p_s) / t  -  (logit c_+ - logit c_s))^2        mean over the row's negatives s

    A pair without a ce_score (NaN), the positive's included, counts as zero. Arguments as in
    `kl_loss`.
    """
    teacher_BS = _logits(ce_scores_BS.to(similarities_BS))
    student_BS = similarities_BS / temperature
    gaps_BN = (student_BS[:, :1] - student_BS[:, 1:]) - (teacher_BS[:, :1] - teacher_BS[:, 1:])
    # By the teacher alone: a student without numbers must not pass for an unscored pair.
    known_BN = ~(ce_scores_BS[:, :1].isnan() | ce_scores_BS[:, 1:].isnan())
    squares_BN = gaps_BN.masked_fill(~known_BN, 0.0).square()
    return (squares_BN.sum(1) / known_BN.sum(1).clamp(min=1)).sum()


def pointwise_loss(logits_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of the binary cross-entropy; labels are 1 (positive) or 0 (negative).

    Equal to the paper's softmax over two classes: sigmoid(z) = softmax([0, z])[1], so one logit
    is the difference of the two.
    """
    logits_B = _wide(logits_B)
    return F.binary_cross_entropy_with_logits(logits_B, labels_B.to(logits_B), reduction="sum")


def listwise_loss(logits_BS: torch.Tensor) -> torch.Tensor:
    """Sum over examples of the cross-entropy of the positive, the first of its S passages.

    The localised contrastive estimation of a reranker (LCE, arXiv 2101.08751). It
    ranks, and fixes no zero: a probability of 0.1 or 0.9 means little after it alone.
    """
    places_B = torch.zeros(len(logits_BS), dtype=torch.int64, device=logits_BS.device)
    return F.cross_entropy(_wide(logits_BS), places_B, reduction="sum")


def _logits(probabilities: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)); a float32 probability of exactly 0 or 1 becomes about -16 or 16."""
    return torch.logit(probabilities, eps=1e-7)


def _ends(rows: slice) -> tuple[int, int]:
    return rows.start, rows.stop


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """float32 at least: a log-sum-exp over thousands of columns needs it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
