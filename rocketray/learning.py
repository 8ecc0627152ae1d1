"""Training examples, and the models that learn from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rocketray import artifacts, schema, storage
from rocketray.artifacts import Version
from rocketray.engine import training
from rocketray.errors import UserError
from rocketray.model.dev import CUTOFF, Dev, reciprocal_rank_of
from rocketray.model.job import Job
from rocketray.model.order import steps_of
from rocketray.preparation import Ready
from rocketray.progress import Meter
from rocketray.recipe import LEXICAL_DEPTH, CrossStep, DualStep, HardStep, Step
from rocketray.retrieval import lexical
from rocketray.stages.examples import CrossExamples, FirstExamples, HardExamples
from rocketray.tables import Tables, as_version
from rocketray.workflow import Spec, Workflow, followed


def first_examples(flow: Workflow, ready: Ready) -> Version:
    """Step 1: human labels, with random or lexical negatives."""
    told = flow.recipe.steps.dual_0
    tables = ready.tables
    inputs = {
        "queries": tables.chosen["train"],
        "qrels": tables.qrels["train"],
        "passages": tables.passages,
    }
    if told.negatives == "bm25":
        inputs["run"] = lexical(flow, ready, "train", LEXICAL_DEPTH)
    negatives = "run" if told.negatives == "bm25" else told.negatives
    (examples,) = flow.bulk(
        Spec(
            name="dual_0_examples",
            stage=FirstExamples,
            inputs=inputs,
            settings={"negatives": negatives, "copies": told.copies, "seed": flow.recipe.seed},
            over="queries",
        )
    )
    return examples


def cross_examples(
    flow: Workflow, ready: Ready, run: Mapping[str, Version], positives: Version
) -> Version:
    """Step 2: positives, and negatives drawn from dual_0's top passages."""
    told = flow.recipe.steps.cross
    (examples,) = flow.bulk(
        Spec(
            name="cross_examples",
            stage=CrossExamples,
            inputs={
                "run": run["train"],
                "positives": positives,
                "passages": ready.tables.passages,
            },
            settings={
                "depth": told.depth,
                "negatives": told.negatives,
                "first_only": flow.recipe.data.positives == "answers",
                "seed": flow.recipe.seed,
            },
            over="run",
        )
    )
    if told.queries is None:
        return examples
    table = examples.read()
    queries = np.unique(table["query"].to_numpy())
    chosen = schema.sample(queries, told.queries, flow.recipe.data_seed)
    kept = table.filter(pa.array(np.isin(table["query"].to_numpy(), chosen)))
    return as_version(flow, "cross_chosen_examples", kept)


def hard_examples(
    flow: Workflow, ready: Ready, name: str, verdicts: Version, positives: Version, run: Version,
    pseudo: Version | None = None, told: HardStep | None = None, fill: str | None = None,
) -> Version:  # fmt: skip
    """Steps 3 and 4: hard negatives by verdict; step 4 adds the pseudo-labelled queries.

    Args:
        told: None takes the recipe's step of this name.
        fill: None takes the recipe's.
    """
    told = told or flow.recipe.steps.of(name)
    inputs = {"labelled": verdicts, "positives": positives, "passages": ready.tables.passages}
    items = [("labelled", block.number) for block in verdicts.blocks]
    if pseudo:
        inputs["unlabelled"] = pseudo
        items += [("pseudo", block.number) for block in pseudo.blocks]
    fill = fill or flow.recipe.denoise.fill
    if fill == "unscored_tail":
        inputs["run"] = run
    (examples,) = flow.bulk(
        Spec(
            name=f"{name}_examples",
            stage=HardExamples,
            inputs=inputs,
            settings={
                "negatives": told.negatives,
                "copies": told.copies,
                "fill": fill,
                "first_only": flow.recipe.data.positives == "answers",
                "seed": flow.recipe.seed,
                **_sampling(told, flow.recipe.model.dual.temperature),
            },
            items=items,
        )
    )
    return examples


def _sampling(told: HardStep, temperature: float) -> dict[str, Any]:
    """What is not the paper's choice of negatives. SimANS's numbers are for scores as the loss sees
    them; those of a run are not divided by the temperature."""
    rules = told.model_dump(include={"sample", "from_rank"}, exclude_defaults=True)
    if told.sample == "simans":
        a, b = told.simans.a, told.simans.b
        rules["simans"] = [a / temperature**2, b * temperature]
    return rules


# --------------------------------------------------------------------------------------- training


def train_dual(
    flow: Workflow, ready: Ready, name: str, examples: Version, told: DualStep | None = None
) -> Version:
    """Train a dual encoder from the initial weights.

    Args:
        told: None takes the recipe's step of this name.
    """
    told = told or flow.recipe.steps.of(name)
    dev = dual_dev(flow, ready.tables)
    extra = dual_settings(told)
    inputs = {
        "weights": ready.dual,
        "examples": examples,
        "query_tokens": ready.dual_tokens.queries,
        "passage_tokens": ready.dual_tokens.passages,
        "qrels": ready.tables.qrels["train"],
    }
    judged = (*flow.recipe.denoise.in_rounds("denoise"), "augment")
    scored = [flow.made[stage] for stage in judged if stage in flow.made]
    if told.mask_ce_above is None:
        scored = []
    return train(flow, name, "dual", told, inputs, dev, extra, scored)


def dual_settings(told: DualStep) -> dict[str, Any]:
    """What only a dual encoder is told."""
    names = {"in_batch", "mask_known", "mask_ce_above", "mask_margin", "loss", "dimensions"}
    return told.model_dump(include=names)


def cross_settings(told: CrossStep) -> dict[str, Any]:
    """What only a cross-encoder is told."""
    return told.model_dump(include={"loss", "adversarial"})


def train_cross(
    flow: Workflow, ready: Ready, run: Mapping[str, Version], positives: Version
) -> Version:
    """Train the cross-encoder from its initial weights."""
    told = flow.recipe.steps.cross
    inputs = {
        "weights": ready.cross,
        "examples": cross_examples(flow, ready, run, positives),
        "query_tokens": ready.cross_tokens.queries,
        "passage_tokens": ready.cross_tokens.passages,
    }
    cross = train(flow, "cross", "cross", told, inputs, _cross_dev(flow), cross_settings(told))
    # Said before hours of scoring, whose verdicts would be worth as little.
    if (quality := cross_quality(flow)) and (weak := weakness(quality)):
        flow.display.say(f"  note: {weak}")
    return cross


def cross_quality(flow: Workflow) -> dict[str, float] | None:
    """MRR@10 on dev of dual_0's first passages: as they are, as cross orders them, and at best."""
    dev, cross = _cross_dev(flow), flow.made["cross"].facts["dev_mrr"]
    if dev is None or dev.candidates is None or cross is None:
        return None
    found = [
        reciprocal_rank_of(passages[:CUTOFF], relevant)
        for passages, relevant in zip(dev.candidates, dev.relevant, strict=True)
    ]
    holds = [
        reciprocal_rank_of(*pair) > 0 for pair in zip(dev.candidates, dev.relevant, strict=True)
    ]
    return {"dual_0": float(np.mean(found)), "cross": cross, "best": float(np.mean(holds))}


def weakness(quality: Mapping[str, float]) -> str | None:
    """What is wrong with a cross-encoder that does not better an order which can be bettered."""
    if quality["cross"] > quality["dual_0"] or quality["dual_0"] >= quality["best"]:
        return None
    return (
        "on dev the cross-encoder orders dual_0's passages no better than dual_0 (MRR@10"
        f" {quality['cross']:.4f} against {quality['dual_0']:.4f}), so its verdicts may be weak:"
        " give steps.cross more questions or epochs, or model.cross more layers."
    )


def train(
    flow: Workflow, name: str, kind: Any, told: Step, inputs: Mapping[str, Version],
    dev: Dev | None, extra: Mapping[str, Any], scored: Sequence[Version] = (),
) -> Version:  # fmt: skip
    """One model: its identity, the engine, and what it counted."""
    if not inputs["examples"].rows:
        raise UserError(f"{name} has no training example: every question lost its negatives.")
    fields = ("epochs", "global_batch", "micro_shard", "learning_rate", "warmup", "schedule",
              "weight_decay", "clip", "evaluations", "patience", "precision",
              "compile")  # fmt: skip
    settings = {**{field: getattr(told, field) for field in fields}, **extra}
    # Change no byte, so a run that needs more memory or patience goes on with the rest.
    beside = {field: getattr(told, field) for field in ("recompute", "checkpoint_every")}
    beside |= {"grad_cache": told.grad_cache} if isinstance(told, DualStep) else {}
    settings["seed"] = flow.recipe.seed
    read = dict(inputs) | {f"scored_{number}": version for number, version in enumerate(scored)}
    identity = {
        "code": 4,
        "recipe": json.loads(artifacts.canonical(settings)),
        "inputs": {n: v.digest for n, v in read.items()} | {"dev": _dev_digest(dev)},
    }

    def make(folder: Path) -> dict[str, Any]:
        if same := _trained_before(flow, name, identity):
            flow.display.say(f"  {name:<26} a copy of {same.name}, which learned the same")
            same.verify()  # Made in an earlier call, maybe, and nothing has read it since.
            return _copied(same, folder)
        paths = {n: v.path for n, v in inputs.items()}
        paths["weights"] = paths["weights"] / "model"
        log = folder / "log.jsonl"
        arguments: dict[str, Any] = {**paths, **settings}
        job = Job(
            kind=kind, out=folder, run_folder=flow.folder, dev=dev, log_path=log, name=name,
            scored=tuple(version.path for version in scored), **beside, **arguments,
        )  # fmt: skip
        steps = _steps(told, inputs["examples"])
        with flow.display.meter(name, steps, "steps") as meter, followed(log, _show(meter)):
            result = training.fit(job, flow.recipe.cluster, flow.display.say)
        return {k: v for k, v in asdict(result).items() if k != "history"}

    model = flow.files(name, identity, list(read.values()), make)
    for leftover in ("checkpoints", "best"):  # Only now: until then they are needed.
        storage.remove(model.path / leftover)
    shutil.rmtree(model.path / "ray_train", ignore_errors=True)
    _show_copy(flow, model)
    return model


def _trained_before(flow: Workflow, name: str, identity: Mapping[str, Any]) -> Version | None:
    """dual_1 for a dual_2 to which step 4 adds nothing, where both steps are told the same: another
    training would repeat it to the byte."""
    before = flow.made.get(flow.recipe.denoise.in_rounds("dual_1")[-1])
    if name != "dual_2" or before is None:
        return None
    whole = {**before.manifest["identity"], "stage": name}
    return before if whole == {"stage": name, **identity} else None


def _copied(model: Version, folder: Path) -> dict[str, Any]:
    """A model's files for another version; its facts."""
    artifacts.copy_tree(model.path / "model", folder / "model")
    storage.fetch(model.path / "log.jsonl")
    shutil.copyfile(model.path / "log.jsonl", folder / "log.jsonl")
    storage.push(folder / "log.jsonl")
    return dict(model.facts)


def _show_copy(flow: Workflow, model: Version) -> None:
    """`models/NAME` and `logs/NAME.jsonl`: copies of the current version, for people."""
    copies = flow.folder.path / "models" / "versions.json"
    known = artifacts.read_json(copies) if copies.is_file() else {}
    if known.get(model.name) != model.path.name:
        artifacts.copy_tree(model.path / "model", flow.folder.path / "models" / model.name)
        log = flow.folder.path / "logs" / f"{model.name}.jsonl"
        log.parent.mkdir(exist_ok=True)
        storage.fetch(model.path / "log.jsonl")
        shutil.copyfile(model.path / "log.jsonl", log)
        storage.push(log)
        artifacts.write_json(copies, {**known, model.name: model.path.name})


def _steps(told: Step, examples: Version) -> int:
    """Optimiser steps, for the bar."""
    batch: int = told.global_batch  # type: ignore[attr-defined]
    if not isinstance(told, CrossStep):
        return steps_of(examples.rows, batch, told.epochs)
    width = 1 + len(examples.table(0)["negatives"][0])
    if told.loss == "listwise":
        return steps_of(examples.rows, max(1, batch // width), told.epochs)
    return steps_of(examples.rows * width, batch, told.epochs)


def _show(meter: Meter) -> Callable[[dict[str, Any]], None]:
    """Follow a training log. A resumed one begins in the middle."""
    begun = False

    def show(line: dict[str, Any]) -> None:
        nonlocal begun
        if not begun:
            meter.begin(line["step"])
            begun = True
        meter.at(line["step"], f"loss {line['loss']:.3f}")

    return show


def dual_dev(flow: Workflow, tables: Tables) -> Dev | None:
    """Dev questions against their own positives and random passages."""
    if "dev" not in tables.chosen:
        return None
    queries = tables.chosen["dev"].read()["query"].to_numpy()
    positives = schema.positives_of(tables.qrels["dev"].read())
    relevant = [np.array(positives[query]) for query in queries.tolist()]
    own = np.unique(np.concatenate(relevant))
    others = np.delete(np.arange(tables.passages.rows), own)
    wanted = flow.recipe.evaluate.dev_passages
    limit = None if wanted is None else max(0, wanted - len(own))
    pool = np.union1d(own, schema.sample(others, limit, flow.recipe.seed))
    return Dev(queries=queries, relevant=relevant, pool=pool)


def _cross_dev(flow: Workflow) -> Dev | None:
    """Dev questions whose top passages by dual_0 are to be reranked."""
    if "dual_0_dev" not in flow.made:
        return None
    positives = schema.positives_of(flow.made["qrels_dev"].read())
    table = flow.made["dual_0_dev"].read()
    queries = table["query"].to_numpy()
    depth = flow.recipe.evaluate.dev_rerank
    return Dev(
        queries=queries,
        relevant=[np.array(positives[query]) for query in queries.tolist()],
        candidates=[np.array(row[:depth]) for row in table["passages"].to_pylist()],
    )


def _dev_digest(dev: Dev | None) -> str | None:
    if dev is None:
        return None
    lists = [dev.queries, *dev.relevant, *(dev.candidates or []), dev.pool]
    return artifacts.fingerprint([None if rows is None else rows.tolist() for rows in lists])
