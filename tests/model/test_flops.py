"""flops.py: a count that a person can repeat."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel

from rocketray.model import weights
from rocketray.model.flops import Flops

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
"""Two rows, of 3 tokens and 1: 4 tokens, 10 squares of lengths."""


def test_two_layers_of_width_32(tmp_path: Path) -> None:
    model = weights.load(AutoModel, weights.tiny(tmp_path / "tiny", ["a", "b"]))
    width, inner = model.config.hidden_size, model.config.intermediate_size
    layers = model.config.num_hidden_layers
    per_layer = 4 * width**2 + 2 * width * inner
    counted = Flops(model, first_token=False)
    assert counted.weights == layers * per_layer
    assert counted.forward(MASK) == 2 * layers * per_layer * 4 + 4 * layers * width * 10


def test_skipped_work_does_not_count(tmp_path: Path) -> None:
    model = weights.load(AutoModel, weights.tiny(tmp_path / "tiny", ["a", "b"]))
    width, inner = model.config.hidden_size, model.config.intermediate_size
    whole, first = (Flops(model, first_token=f).forward(MASK) for f in (False, True))
    # Two tokens are not their row's first: no query, no output, no feed-forward in the last layer;
    # and of 10 pairs of tokens 4 are asked for, by the two first tokens.
    assert whole - first == 2 * 2 * (2 * width**2 + 2 * width * inner) + 4 * width * (10 - 4)
