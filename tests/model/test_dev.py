"""dev.py: ranks by hand; whole evaluations are tested in test_trainer.py."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch

from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dev import Dev, cross_mrr, dual_mrr, reciprocal_rank
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.trainer import Trainer
from tests.model.training_data import TrainingData

SCORES = np.array([0.9, 0.5, 0.5, 0.5, 0.1])


@pytest.mark.parametrize(
    ("relevant", "expected"),
    [([0], 1), ([1], 1 / 2), ([3], 1 / 4), ([3, 2], 1 / 3), ([4], 1 / 5), ([4, 0], 1), ([], 0)],
)
def test_ties_go_to_the_lower_position(relevant: list[int], expected: float) -> None:
    assert reciprocal_rank(SCORES, np.array(relevant, np.int64)) == expected


def test_the_tenth_counts_and_the_eleventh_does_not() -> None:
    falling = np.arange(20, 0, -1)
    assert reciprocal_rank(falling, np.array([9])) == 1 / 10
    assert reciprocal_rank(falling, np.array([10])) == 0


def test_a_model_that_gives_no_numbers_finds_nothing() -> None:
    assert reciprocal_rank(np.full(3, math.nan), np.array([0])) == 0


def test_cross_encoder_reranks_its_candidates(data: TrainingData) -> None:
    run = Trainer(data.job("cross", data.folder, data.cross(dropout=0.0)), torch.device("cpu"))
    dev, feed, model = data.dev(), run.feed, run.model
    assert isinstance(model, CrossEncoder)
    model.eval()
    found = []
    for query, rows, relevant in zip(dev.queries, dev.candidates or [], dev.relevant, strict=True):
        rows = np.sort(rows)
        batch = feed.assembler.pairs(
            feed.queries, np.repeat(query, len(rows)), feed.passages, rows, 40
        )
        with torch.no_grad():
            order = np.argsort(-model.ce_scores(batch).numpy(), kind="stable")
        ranks = [rank for rank, row in enumerate(rows[order], 1) if row in relevant]
        found.append(1 / ranks[0] if ranks[0] <= 10 else 0)
    assert cross_mrr(model, feed, dev) == pytest.approx(np.mean(found))


def test_what_dev_lacks_is_said(data: TrainingData) -> None:
    run = Trainer(data.job("dual", data.folder, data.dual(dropout=0.0)), torch.device("cpu"))
    model = run.model
    assert isinstance(model, DualEncoder)
    dev = Dev(queries=np.arange(1), relevant=[np.arange(1)])
    with pytest.raises(ValueError, match="judged on a pool"):
        dual_mrr(model, run.feed, dev)
    with pytest.raises(ValueError, match="judged on candidates"):
        cross_mrr(mock.Mock(), run.feed, dev)
