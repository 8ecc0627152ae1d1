"""How an encoder's transformers are told to save memory or time, whichever architecture it is."""

from __future__ import annotations

from typing import Any

import torch

from rocketray.errors import UserError
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.weights import DROPOUT_FIELDS


def has_dropout(model: DualEncoder | CrossEncoder) -> bool:
    """Whether two forwards in training differ. Some rates stand in the configuration alone."""
    return any(
        isinstance(rate, float) and rate > 0
        for tower in towers_of(model)
        for rate in (getattr(tower.config, name, 0.0) for name in DROPOUT_FIELDS)
    )


def towers_of(model: DualEncoder | CrossEncoder) -> list[Any]:
    return [model.model] if isinstance(model, CrossEncoder) else [model.query, model.passage]


def touch_few_words(model: DualEncoder | CrossEncoder) -> None:
    """Let a shard's backward add to its own words' gradient rows in place, instead of making and
    adding a table of the whole vocabulary: a tenth of a small model's step on a CPU. A GPU fills
    such a table in no time."""
    for tower in towers_of(model):
        tower.get_input_embeddings().sparse = True


def cannot_recompute(model: DualEncoder | CrossEncoder) -> str | None:
    """The architecture that transformers has no activation checkpointing for, if it is one."""
    foreign = (type(t).__name__ for t in towers_of(model) if not t.supports_gradient_checkpointing)
    return next(foreign, None)


def recompute(model: DualEncoder | CrossEncoder) -> None:
    if name := cannot_recompute(model):
        raise UserError(
            f"recompute: transformers cannot for {name}. Set recompute=false; a smaller micro_shard"
            " or shorter texts need less memory, too."
        )
    for tower in towers_of(model):
        # transformers 5 renamed it on the way.
        old = "gradient_checkpointing_enable"
        new = "activation_checkpointing_enable"
        getattr(tower, new if hasattr(tower, new) else old)({"use_reentrant": False})


def compile_layers(model: DualEncoder | CrossEncoder) -> None:
    """Layer by layer: they are alike, so one compilation serves them all. The last layer of
    `first_token` is called in parts, and stays as it is."""
    for tower in towers_of(model):
        for stack in tower.modules():
            if isinstance(stack, torch.nn.ModuleList):
                for layer in stack:
                    layer.compile(dynamic=True)
