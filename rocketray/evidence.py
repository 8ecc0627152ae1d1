"""What a row of an ablation had to work with, and what it took: read from what its run made.

A rule that could not act looks like one that does not help. So beside a row's measures stands what
it acted on.

    kept, removed, uncertain   of the passages without a label in the lists it took negatives from
    near                       of the same: too near the positive, by `denoise.filter`
    filled                     of its hard negatives: random, or from the unscored tail of a list
    taught                     of its examples: ce_scores known for the positive and a negative
    unlike                     of its examples: dual_1 has no such one
    masked                     cells a step that were no negatives, by id or by ce_score
    masked_by_margin           the same by similarity

All but the last two are shares; `taught` is counted where ce_scores are distilled. A row without
hard negatives has none of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rocketray.artifacts import Version
from rocketray.report import denoised
from rocketray.schema import Verdict, likely_false
from rocketray.workflow import Workflow

LITTLE = 0.05
"""A rule that touches a smaller share than this could hardly act."""

MADE_ONCE = (
    "passages", "queries", "query_tokens", "passage_tokens", "cross_query_tokens",
    "cross_passage_tokens", "initial", "initial_embeddings", "initial_test", "bm25_test",
    "bm25_train",
)  # fmt: skip
"""Stages that no seed changes and that take time: made for the first seed, in no row's time."""
AFTER = (
    "embeddings", "index_trained", "index", "test", "test_cells", "exact", "exact_cells",
    "recall_queries", "recall", "measures",
)  # fmt: skip
"""Stages that come after a row's training, to measure it, by what follows its name."""
CUT_FROM = {"cross_chosen_examples": "cross_examples"}
"""A table that was cut out of another; its identity is its content and does not say from which."""


# ----------------------------------------------------------------------------- what it worked with


def facts(flow: Workflow, name: str) -> dict[str, float]:
    """What a row's model was trained on, and what its rule had to work with; empty without one."""
    if name not in flow.made:
        return {}
    model = flow.made[name]
    found = {field: model.facts[field] for field in ("steps", "rows", "negatives_per_query")}
    examples = flow.made.get(f"{name}_examples") or _input(flow, model, "examples")
    verdicts = examples and _input(flow, examples, "labelled")
    if examples is None or verdicts is None:
        return found
    distilled = model.manifest["identity"]["recipe"]["loss"]
    table = examples.read()
    found |= _listed(verdicts.facts) | _masked(model)
    found["filled"] = examples.facts["filled"] / len(pc.list_flatten(table["negatives"]))
    if distilled["kl"] or distilled["margin_mse"]:
        found["taught"] = taught(table)
    if name != "dual_1":
        found["unlike"] = unlike(table, flow.made["dual_1_examples"].read())
    return found


def _input(flow: Workflow, version: Version, name: str) -> Version | None:
    """What went into a version of this run as `name`; None: no such input."""
    digest = version.manifest["identity"]["inputs"].get(name)
    return next((made for made in flow.made.values() if made.digest == digest), None)


def _listed(counts: Mapping[str, int]) -> dict[str, float]:
    """What became of the passages without a label."""
    found = {"kept": counts[Verdict.HARD_NEGATIVE], "removed": likely_false(counts),
             "uncertain": counts[Verdict.UNCERTAIN],
             "near": counts[Verdict.NEAR_POSITIVE]}  # fmt: skip
    return {name: count / max(1, sum(found.values())) for name, count in found.items()}


def taught(examples: pa.Table) -> float:
    """Share of EXAMPLES of which a teacher's score is known for the positive and a negative."""
    own_R = ~np.isnan(examples["ce_positive"].to_numpy())
    scores = pc.list_flatten(examples["ce_negatives"]).to_numpy()
    others_RN = ~np.isnan(scores).reshape(len(examples), -1)
    return float((own_R & others_RN.any(1)).mean())


def unlike(examples: pa.Table, others: pa.Table) -> float:
    """Share of EXAMPLES that are not among others."""
    return float((~np.isin(_hashes(examples), _hashes(others))).mean())


def _hashes(examples: pa.Table) -> np.ndarray:
    """uint64, of each example's query, positive and negatives."""
    negatives_RN = pc.list_flatten(examples["negatives"]).to_numpy().reshape(len(examples), -1)
    columns = [examples[name].to_numpy() for name in ("query", "positive")]
    frame = pd.DataFrame(np.column_stack([*columns, negatives_RN]))
    return np.asarray(pd.util.hash_pandas_object(frame, index=False))


def _masked(model: Version) -> dict[str, float]:
    """From the training's log, of which a resumed one may tell a step twice."""
    lines = map(json.loads, (model.path / "log.jsonl").read_text(encoding="utf-8").splitlines())
    steps = {line["step"]: line for line in lines if "masked" in line}
    fields = ("masked", "masked_by_margin")
    return {
        name: sum(step[name] for step in steps.values()) / max(1, len(steps)) for name in fields
    }


def idle(row: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """Why a row's rule could hardly act, where its counts say so.

    Args:
        row: as ablation.json has it; so `base`, which is dual_1.
    """
    had, usual = row.get("had", {}), base.get("had", {})
    if "unlike" not in had or row["steps"] != base["steps"]:
        return None
    if "taught" in had:
        words = "of its examples have ce_scores of both their positive and a negative"
        return f"{had['taught']:.1%} {words}" if had["taught"] < LITTLE else None
    more = sum(had[name] - usual[name] for name in ("masked", "masked_by_margin"))
    if had["unlike"] >= LITTLE or more >= 1:
        return None
    words = "of its examples are not dual_1's, and it masks"
    return f"{had['unlike']:.1%} {words} {more:.1f} cells more a step"


# ------------------------------------------------------------------------------------ what it took


def own(name: str, stages: Collection[str]) -> set[str]:
    """Of the stages that a row added to its run: training and what comes before it, not encoding
    and searching by what was trained, nor what is made once for all seeds."""
    return set(stages).difference(MADE_ONCE, (f"{name}_{after}" for after in AFTER))


def behind(flow: Workflow, name: str) -> set[str]:
    """All stages of this run that a row's model rests on, its own training among them: what one
    would have to do for this model alone. Without what is made once for all seeds."""
    first: dict[str, str] = {}
    for stage, version in flow.made.items():
        first.setdefault(version.digest, stage)  # Of two stages of one content the earlier.
    found, todo = set[str](), [name]
    while todo:
        stage = todo.pop()
        if stage in found:
            continue
        found.add(stage)
        inputs = flow.made[stage].manifest["identity"].get("inputs", {})
        for key, digest in inputs.items():
            made = first.get(digest)
            # Masks by ce_score are told what `augment` judged as well: other questions, and who
            # learns from those has them in its examples.
            if made and not (made == "augment" and key.startswith("scored_")):
                todo.append(made)
        todo += [CUT_FROM[stage]] if stage in CUT_FROM else []
    return found - set(MADE_ONCE)


def seconds(flow: Workflow, stages: Collection[str]) -> float:
    return float(sum(row["seconds"] for row in flow.timings() if row["stage"] in stages))


# -------------------------------------------------------------------------- what denoising took out


def removed(flow: Workflow) -> dict[str, list[float]]:
    """Share of unlabelled passages that denoising took out, by rank (the paper's Figure 5)."""
    found = denoised.read(flow.made["denoise"]).by_rank
    return {verdict: shares.tolist() for verdict, shares in found.items()}
