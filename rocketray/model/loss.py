"""The two losses of RocketQA, as pure functions of tensors. They know of no workers.

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

# Shapes: B queries, G passages (columns), C rows of a chunk, D embedding size.

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

Mask = torch.Tensor | Callable[[int, int], torch.Tensor]
"""bool [B, G], or a function of a row range that makes [stop - start, G]; True = no column."""


def contrastive_loss(
    q_BD: torch.Tensor,
    p_GD: torch.Tensor,
    positives_B: torch.Tensor,
    *,
    mask: Mask | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
) -> torch.Tensor:
    """Sum over rows of the cross-entropy of each query's positive against its columns.

    RocketQA, equations 1 and 3 (arXiv 2010.08191): query to passages only. The logits exist for
    `chunk` rows at a time; backward makes them again (8 % more time, O(chunk * G) memory).

    Args:
        q_BD: queries; B may be 0, and the gradient then flows all the same (as zeros).
        p_GD: all passages that compete, those of other workers included, with their gradient.
        positives_B: int64, the column of each query's positive.
        mask: columns a row must not see. A row's own positive must never be masked.
        temperature: logits are inner products divided by this.
        chunk: rows whose logits exist at once.

    Returns:
        A scalar, the sum and not the mean: the caller divides by the rows of the global batch.
    """

    def rows_loss(q_CD: torch.Tensor, p_GD: torch.Tensor, start: int) -> torch.Tensor:
        stop = start + len(q_CD)
        logits_CG = _wide(q_CD @ p_GD.T) / temperature
        if mask is not None:
            mask_CG = mask[start:stop] if isinstance(mask, torch.Tensor) else mask(start, stop)
            logits_CG = logits_CG.masked_fill(mask_CG, -torch.inf)
        return F.cross_entropy(logits_CG, positives_B[start:stop], reduction="sum")

    # One round at least: a worker without rows still has to send a gradient into the gather.
    losses = [
        checkpoint(
            rows_loss,
            q_BD[start : start + chunk],
            p_GD,
            start,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, max(1, len(q_BD)), chunk)
    ]
    return torch.stack(losses).sum()


def pointwise_loss(logits_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of the binary cross-entropy; labels are 1 (positive) or 0 (negative).

    Equal to the paper's softmax over two classes: sigmoid(z) = softmax([0, z])[1], so one logit
    is the difference of the two.
    """
    logits_B = _wide(logits_B)
    return F.binary_cross_entropy_with_logits(logits_B, labels_B.to(logits_B), reduction="sum")


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """float32 at least: a log-sum-exp over thousands of columns needs it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
