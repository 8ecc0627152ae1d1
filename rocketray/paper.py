"""The paper's rules (RocketQA, arXiv 2010.08191), and where a recipe departs from them.

A rule says how something is done; numbers that belong to a data set or a machine (epochs, batches,
learning rates, depths, numbers of negatives) are none. Sources stand beside the values in the
recipes `msmarco` and `nq`, which depart nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Either(tuple[Any, ...]):
    """Values that are all the paper's; the first is taken where a recipe says nothing."""


_LAST: dict[str, Any] = {"evaluations": 1, "patience": None}
"""A step ends with its last weights: dev questions choose none."""
_DUAL_STEP: dict[str, Any] = {
    "warmup": 0.1,
    "schedule": "linear",
    "weight_decay": 0.0,
    "clip": 1.0,
    **_LAST,
    "in_batch": None,
    "mask_known": False,
    "mask_ce_above": None,
    "mask_margin": None,
    "dimensions": [],
    "loss.contrastive": 1.0,
    "loss.kl": 0.0,
    "loss.margin_mse": 0.0,
    "loss.passage": 0.0,
}
_HARD_STEP = {**_DUAL_STEP, "sample": "top", "from_rank": 1}
_CROSS_STEP: dict[str, Any] = {
    "warmup": 0.0,
    "schedule": "constant",
    "weight_decay": 0.01,
    "clip": 1.0,
    **_LAST,
    "loss": "pointwise",
    "adversarial": 0.0,
}

RULES: dict[str, Any] = {
    "model.dual.towers": "two",
    "model.dual.pooling": "cls",
    "model.dual.similarity": "dot",
    "model.dual.temperature": 1.0,
    "model.dual.query_length": 32,
    "model.dual.passage_length": 128,
    "model.dual.query_prompt": "",
    "model.dual.passage_prompt": "",
    "model.dual.dropout": None,
    "model.cross.length": 160,
    "model.cross.dropout": None,
    **{f"steps.dual_0.{field}": value for field, value in _DUAL_STEP.items()},
    **{f"steps.cross.{field}": value for field, value in _CROSS_STEP.items()},
    **{f"steps.dual_1.{field}": value for field, value in _HARD_STEP.items()},
    **{f"steps.dual_2.{field}": value for field, value in _HARD_STEP.items()},
    "retrieve.index": Either([None, "Flat"]),
    "denoise.negative_below": 0.1,
    "denoise.positive_above": 0.9,
    "denoise.off": False,
    "denoise.pool": "dual_0",
    "denoise.rounds": 1,
    "denoise.filter.percpos": None,
    "denoise.filter.marginpos": None,
    "denoise.promote": False,
    "denoise.calibration": "none",
    # The paper is silent; its scripts do the first on MS MARCO, the second on Natural Questions.
    "denoise.fill": Either(["unscored_tail", "drop"]),
    "data.hide_labels": 0.0,
    "data.hide_positives": 0.0,
}
"""Field of a recipe -> what the paper does; where the paper is silent, its released scripts."""

_SIZE = "a number of the data set or the machine"
_MACHINE = "the machine's"
_SAME = "changes no result"
_ASKED = "asked only beside another field, and that one departs"
_FREE_STEP = {
    "epochs": _SIZE,
    "global_batch": _SIZE,
    "learning_rate": _SIZE,
    "negatives": _SIZE,
    "micro_shard": _MACHINE,
    "precision": _MACHINE,
    "recompute": _SAME,
    "compile": _SAME,
    "checkpoint_every": _SAME,
}
_FREE_HARD_STEP = {
    **_FREE_STEP,
    "copies": _SIZE,
    "grad_cache": _SAME,
    "simans.a": _ASKED,
    "simans.b": _ASKED,
}

FREE: dict[str, str] = {
    "model.dual.weights": "the paper compares several, in its Table 6",
    "model.dual.layers": _SIZE,
    "model.cross.weights": "as the dual encoder's",
    "model.cross.layers": _SIZE,
    **{f"steps.dual_0.{field}": why for field, why in _FREE_STEP.items()},
    "steps.dual_0.negatives": "none in the paper; in its scripts random ones on MS MARCO, BM25's on"
    " Natural Questions",
    "steps.dual_0.copies": _SIZE,
    "steps.dual_0.grad_cache": _SAME,
    **{f"steps.cross.{field}": why for field, why in _FREE_STEP.items()},
    "steps.cross.depth": _SIZE,
    "steps.cross.queries": _SIZE,
    **{f"steps.dual_1.{field}": why for field, why in _FREE_HARD_STEP.items()},
    **{f"steps.dual_2.{field}": why for field, why in _FREE_HARD_STEP.items()},
    "retrieve.probe": _ASKED,
    "retrieve.train_rows": _ASKED,
    "denoise.depth": _SIZE,
    "denoise.filter.by": _ASKED,
    "augment.depth": _SIZE,
    "augment.queries": _SIZE,
    "data.source": "says where data come from",
    "data.positives": "labels on MS MARCO and answers on Natural Questions are both the paper's",
    "data.seed": "of draws, and says nothing of how",
    "data.labelled": _SIZE,
    "data.passages": _SIZE,
    "data.queries": _SIZE,
}
"""Field without a rule -> why it has none. Every field under `model`, `steps`, `retrieve`,
`denoise`, `augment` and `data` is in RULES or here: a new one must be thought about."""


class Departure(NamedTuple):
    """One field in which a recipe is not the paper's."""

    field: str
    value: Any
    paper: Any

    def __str__(self) -> str:
        return f"{self.field} {_word(self.value)} ({_word(self.paper)})"


def departures(tree: Mapping[str, Any]) -> list[Departure]:
    """Every rule that a whole recipe, as plain values, does not keep; in the recipe's order."""
    found = (Departure(field, _at(tree, field), value) for field, value in RULES.items())
    return [row for row in found if not _kept(row.value, row.paper)]


def _kept(value: Any, rule: Any) -> bool:
    return value in rule if isinstance(rule, Either) else bool(value == rule)


def filled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tree with the paper's rule wherever it says nothing itself."""
    whole = dict(tree)
    for field, value in RULES.items():
        *parents, last = field.split(".")
        fields = whole
        for parent in parents:
            below = fields.get(parent, {})
            if not isinstance(below, Mapping):  # A mistake; who reads the recipe will say so.
                break
            fields[parent] = fields = dict(below)
        else:
            if field != "denoise.off":  # The default, too; and YAML may have spelled it `false`.
                fields.setdefault(last, value[0] if isinstance(value, Either) else value)
    return whole


def comment(tree: Mapping[str, Any]) -> str:
    """The departures as lines of YAML that change nothing."""
    return "".join(f"{line}\n" for line in _lines(departures(tree)))


def _lines(found: list[Departure]) -> Iterator[str]:
    if found:
        yield "# Departs from the paper's rules; in brackets the paper's:"
        yield from (f"#   {departure}" for departure in found)
    else:
        yield "# Departs from none of the paper's rules."


def _at(tree: Mapping[str, Any], field: str) -> Any:
    value: Any = tree
    for name in field.split("."):
        value = value[name]
    return value


def _word(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, Either):
        return " or ".join(map(_word, value))
    return value if isinstance(value, str) and value else json.dumps(value)
