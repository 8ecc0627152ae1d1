"""The stage graph: ingest, then RocketQA's four steps in order, then the table of results.

labelled -> dual_0 -retrieve-> run_0 -> cross          positives + negatives drawn from run_0
                               run_0 -score-> denoise -> dual_1         from the initial weights
unlabelled -retrieve by dual_1-> score -> augment -> dual_2             from the initial weights
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rocketray import artifacts, calibration, schema, storage
from rocketray.artifacts import Version
from rocketray.engine import training
from rocketray.errors import UserError
from rocketray.formats import Dataset
from rocketray.formats.generated import words
from rocketray.model import index, weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.order import steps_of
from rocketray.model.tokens import Tokenizer
from rocketray.model.trainer import Dev, Job
from rocketray.progress import Meter
from rocketray.recipe import (
    LEXICAL_DEPTH,
    Cross,
    CrossStep,
    Dual,
    DualStep,
    HardStep,
    Recipe,
    Step,
)
from rocketray.recipe import Denoise as Rules
from rocketray.stages.answers import AnswerPositives
from rocketray.stages.augment import Augment
from rocketray.stages.denoise import Denoise, TrustAll
from rocketray.stages.encode import Encode
from rocketray.stages.examples import CrossExamples, FirstExamples, HardExamples
from rocketray.stages.index import FillIndex, Recall, TrainIndex
from rocketray.stages.lexical import Lexical
from rocketray.stages.pool import Pool
from rocketray.stages.retrieve import Group, MergeTopk, Retrieve, grid, groups_of
from rocketray.stages.score import Score
from rocketray.stages.tokenise import Tokenise
from rocketray.tables import Tables, as_version, read_tables
from rocketray.workflow import Spec, Workflow, followed

STEPS = ("dual_0", "cross", "dual_1", "dual_2")
RECALL_QUERIES = 200
"""So many questions measure an index: enough to know its recall to about one point."""


@dataclass(frozen=True)
class Tokens:
    """Token stores of both tables for one tokenizer."""

    queries: Version
    passages: Version


@dataclass(frozen=True)
class Ready:
    """All that stands before the first step."""

    tables: Tables
    dual: Version
    """Initial weights, in rocketray's folder form."""
    cross: Version
    dual_tokens: Tokens
    cross_tokens: Tokens


# --------------------------------------------------------------------------------------- the loop


def run(flow: Workflow, ready: Ready) -> None:
    """The whole method. Each line makes versions, or finds that they are there."""
    dual_0 = train_dual(flow, ready, "dual_0", first_examples(flow, ready))
    # The untrained weights come here and not first: together they start two pools of workers fewer.
    found = retrieve(
        flow, ready, {"initial": ready.dual, "dual_0": dual_0},
        {"initial": ["test"], "dual_0": ["train", "dev", "test"]},
    )  # fmt: skip
    run_0 = found["dual_0"]
    positives = distant_positives(flow, ready, run_0["train"]) or ready.tables.qrels["train"]
    cross = train_cross(flow, ready, run_0, positives)
    candidates = pool(flow, ready, run_0["train"], flow.recipe.denoise)
    verdicts = denoise(flow, ready, candidates, cross, positives, flow.recipe.denoise)
    examples = hard_examples(flow, ready, "dual_1", verdicts, positives, candidates)
    dual_1 = train_dual(flow, ready, "dual_1", examples)
    run_1 = retrieve(flow, ready, {"dual_1": dual_1}, {"dual_1": ["unlabelled", "test"]})["dual_1"]
    pseudo = augment(flow, ready, run_1.get("unlabelled"), cross)
    examples = hard_examples(flow, ready, "dual_2", verdicts, positives, candidates, pseudo)
    dual_2 = train_dual(flow, ready, "dual_2", examples)
    retrieve(flow, ready, {"dual_2": dual_2}, {"dual_2": ["test"]})
    rerank(flow, ready, cross)


def check_index(flow: Workflow, dual: Version) -> None:
    """Before hours are spent on embeddings that the recipe's index would not take."""
    told = flow.recipe.retrieve
    if told.index:
        size = DualEncoder.open(artifacts.brought(dual.path / "model")).size
        index.check(told.index, told.probe, size)


def prepare(flow: Workflow, dataset: Dataset) -> Ready:
    """Tables, initial weights and tokens."""
    tables = read_tables(flow, dataset)
    dual = initial_dual(flow, flow.recipe.model.dual)
    check_index(flow, dual)
    cross = initial_cross(flow, flow.recipe.model.cross)
    dual_tokens, cross_tokens = tokenise(flow, tables, dual, cross)
    return Ready(tables, dual, cross, dual_tokens, cross_tokens)


# ---------------------------------------------------------------------- initial weights and tokens


def initial_dual(flow: Workflow, told: Dual, name: str = "initial") -> Version:
    """The dual encoder before any training; every dual step starts from it again."""
    settings = told.model_dump(mode="json", exclude={"weights"})

    def make(folder: Path) -> dict[str, Any]:
        source = weights_of(flow, told.weights)
        DualEncoder.create(source, **told.model_dump(exclude={"weights"})).save(folder / "model")
        storage.push(folder / "model")
        return {}

    return flow.files(name, from_weights(flow, told.weights, settings), [], make)


def initial_cross(flow: Workflow, told: Cross) -> Version:
    """The cross-encoder before any training: given weights and a seeded new head."""
    settings = {**told.model_dump(mode="json", exclude={"weights"}), "seed": flow.recipe.seed}

    def make(folder: Path) -> dict[str, Any]:
        source = weights_of(flow, told.weights)
        CrossEncoder.create(
            source, layers=told.layers, length=told.length, dropout=told.dropout,
            seed=flow.recipe.seed,
        ).save(folder / "model")  # fmt: skip
        storage.push(folder / "model")
        return {}

    return flow.files("initial_cross", from_weights(flow, told.weights, settings), [], make)


def weights_of(flow: Workflow, name: str) -> Path:
    """A folder of weights. "tiny" is made here: a random model over the generated data's words."""
    if name == "tiny":
        return weights.tiny(flow.folder.path / "tiny", words(), seed=0)
    return weights.resolve(name)


def from_weights(flow: Workflow, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a model made from a folder of weights."""
    folder = weights_of(flow, name)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".txt"))
    hashes = {path.name: artifacts.file_sha256(path) for path in files}
    return {
        "code": 1,
        "recipe": dict(settings),
        "inputs": {"weights": artifacts.fingerprint(hashes)},
    }


@dataclass(frozen=True)
class Reading:
    """How a model reads one side, queries or passages: what its token store must hold."""

    tokenizer: Path
    fingerprint: str
    """Of the tokenizer's files."""
    limit: int
    """Tokens kept of a row."""
    spaces: Mapping[str, bool]
    """What `Tokenizer.store_block` is told beside; empty where the tokenizer does not care."""

    def spec(self, name: str, table: Version, unit: str) -> Spec:
        return Spec(
            name=name,
            stage=Tokenise,
            inputs={"table": table},
            settings={"limit": self.limit, **self.spaces},
            given={"tokenizer": str(self.tokenizer)},
            also={"tokenizer_files": self.fingerprint},
            over="table",
            unit=unit,
        )


Readings = tuple[Reading, Reading]
"""Of queries, of passages."""


def model_settings(model: Version) -> dict[str, Any]:
    """What the folder of a dual encoder or a cross-encoder says of it."""
    folder = artifacts.brought(model.path / "model")
    return dict(artifacts.read_json(folder / "rocketray.json"))


def readings(model: Version) -> Readings:
    """How a dual encoder or a cross-encoder reads, as its folder says."""
    told = model_settings(model)
    folder = tokenizer_of(model)
    tokenizer = Tokenizer(folder)

    def reading(limit: int, prompt: str, *, joined: bool) -> Reading:
        spaces = {"spaced": prompt.endswith(" "), "joined": joined}
        told = spaces if tokenizer.minds_spaces else {}
        return Reading(folder, tokenizer.fingerprint, limit, told)

    if "length" in told:  # A cross-encoder: one limit for both, title and text as one string.
        queries, passages = (reading(told["length"], "", joined=joined) for joined in (False, True))
    else:
        queries, passages = (
            reading(told[f"{side}_length"], told[f"{side}_prompt"], joined=False)
            for side in ("query", "passage")
        )
    return queries, passages


def tokenise(
    flow: Workflow, tables: Tables, dual: Version, cross: Version
) -> tuple[Tokens, Tokens]:
    """Token stores for both models: one where they read alike but for the length."""
    of_dual, of_cross = readings(dual), readings(cross)
    pairs = list(zip(of_dual, of_cross, strict=True))
    if all((a.fingerprint, a.spaces) == (b.fingerprint, b.spaces) for a, b in pairs):
        queries, passages = (replace(a, limit=max(a.limit, b.limit)) for a, b in pairs)
        (both,) = token_stores(flow, tables, {"": (queries, passages)})
        return both, both
    dual_tokens, cross_tokens = token_stores(flow, tables, {"": of_dual, "cross_": of_cross})
    return dual_tokens, cross_tokens


def token_stores(flow: Workflow, tables: Tables, wanted: Mapping[str, Readings]) -> list[Tokens]:
    """Token ids of both tables, by prefix of the stage's name."""
    specs = [
        reading.spec(f"{prefix}{name}_tokens", table, unit)
        for prefix, sides in wanted.items()
        for reading, name, table, unit in (
            (sides[0], "query", tables.queries, "queries"),
            (sides[1], "passage", tables.passages, "passages"),
        )
    ]
    made = flow.bulk(*specs)
    return [Tokens(made[i], made[i + 1]) for i in range(0, len(made), 2)]


def tokenizer_of(model: Version) -> Path:
    """Where a model folder keeps its tokenizer: two towers keep one each, the same."""
    folder = model.path / "model"
    return folder if "model/tokenizer.json" in model.manifest["sha256"] else folder / "query"


# ----------------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class Searched:
    """The corpus as one model sees it, and that model."""

    model: Version
    embeddings: Version
    indexes: Version | None
    """None: search is exact."""


def retrieve(
    flow: Workflow, ready: Ready, models: Mapping[str, Version],
    purposes: Mapping[str, Sequence[str]], depths: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Version]]:  # fmt: skip
    """Encode the corpus by each model, and retrieve for some purposes' queries: runs by model and
    purpose.

    Args:
        depths: passages per query by purpose; None takes what the recipe's later steps need.
    """
    seen = searched(flow, ready, models)
    wanted = [
        (name, purpose)
        for name in models
        for purpose in purposes[name]
        if purpose in ready.tables.chosen
    ]
    depths = depths or list_depths(flow.recipe)
    specs = [
        _retrieve_spec(
            flow, ready, f"{name}_{purpose}", seen[name], ready.tables.chosen[purpose],
            depths[purpose],
        )
        for name, purpose in wanted
    ]  # fmt: skip
    runs: dict[str, dict[str, Version]] = {name: {} for name in models}
    for (name, purpose), run in zip(wanted, _merged(flow, specs), strict=True):
        runs[name][purpose] = run
    if flow.recipe.retrieve.index:
        measure_recall(flow, ready, seen, runs, depths)
    return runs


def searched(flow: Workflow, ready: Ready, models: Mapping[str, Version]) -> dict[str, Searched]:
    """By model: the corpus encoded, and indexed where the recipe wants that."""
    made = flow.bulk(
        *(
            _choosing(
                flow,
                Spec(
                    name=f"{name}_embeddings",
                    stage=Encode,
                    inputs={"model": model, "tokens": ready.dual_tokens.passages},
                    settings=flow.recipe.encode.model_dump(),
                    over="tokens",
                    unit="passages",
                ),
            )
            for name, model in models.items()
        )
    )
    embeddings = dict(zip(models, made, strict=True))
    indexes = _indexed(flow, embeddings) if flow.recipe.retrieve.index else {}
    return {
        name: Searched(model, embeddings[name], indexes.get(name))
        for name, model in models.items()
    }  # fmt: skip


def _indexed(flow: Workflow, embeddings: Mapping[str, Version]) -> dict[str, Version]:
    """By model: an index is trained on a sample, and then filled with each group of passages."""
    told = flow.recipe.retrieve
    settings = {"factory": told.index, "rows": told.train_rows, "seed": flow.recipe.seed}
    trained = flow.bulk(
        *(
            Spec(
                name=f"{name}_index_trained",
                stage=TrainIndex,
                inputs={"embeddings": made},
                settings=settings,
                items=[0],
                unit="passages",
            )
            for name, made in embeddings.items()
        )
    )
    filled = flow.bulk(
        *(
            Spec(
                name=f"{name}_index",
                stage=FillIndex,
                inputs={"embeddings": made, "trained": empty},
                also={"groups": _groups(flow, made)},
                items=_groups(flow, made),
                unit="passages",
            )
            for (name, made), empty in zip(embeddings.items(), trained, strict=True)
        )
    )
    return dict(zip(embeddings, filled, strict=True))


def _groups(flow: Workflow, embeddings: Version) -> list[Group]:
    rows = [block.rows for block in embeddings.blocks]
    return groups_of(rows, flow.recipe.blocks.passage_group)


def list_depths(recipe: Recipe) -> dict[str, int]:
    """How long each purpose's lists must be."""
    tail = recipe.denoise.fill == "unscored_tail"
    train = max(recipe.steps.cross.depth, recipe.denoise.depth * (2 if tail else 1))
    return {
        "train": train,
        "dev": recipe.evaluate.dev_rerank,
        "test": max(recipe.evaluate.k, recipe.evaluate.rerank),
        "unlabelled": recipe.augment.depth,
    }


def _retrieve_spec(
    flow: Workflow, ready: Ready, name: str, searched: Searched, queries: Version, k: int
) -> Spec:
    """A run or, where passages come in groups, its cells."""
    groups = _groups(flow, searched.embeddings)
    inputs = {
        "model": searched.model,
        "queries": queries,
        "query_tokens": ready.dual_tokens.queries,
        "embeddings": searched.embeddings,
    }
    settings: dict[str, Any] = {"k": k}
    if searched.indexes:
        inputs["indexes"] = searched.indexes
        settings["probe"] = flow.recipe.retrieve.probe
    return Spec(
        name=name if len(groups) == 1 else f"{name}_cells",
        stage=Retrieve,
        inputs=inputs,
        settings=settings,
        also={"groups": groups},
        items=grid(len(queries.blocks), groups),
    )


def _merged(flow: Workflow, specs: Sequence[Spec]) -> list[Version]:
    """Run retrieval; where passages came in groups, join them per query."""
    found = flow.bulk(*specs)
    groups = [len(spec.also["groups"]) for spec in specs]
    merges = {
        number: Spec(
            name=spec.name.removesuffix("_cells"),
            stage=MergeTopk,
            inputs={"cells": found[number]},
            settings={"groups": groups[number], "k": spec.settings["k"]},
            items=range(len(found[number].blocks) // groups[number]),
        )
        for number, spec in enumerate(specs)
        if groups[number] > 1
    }
    joined = dict(zip(merges, flow.bulk(*merges.values()), strict=True)) if merges else {}
    return [joined.get(number, version) for number, version in enumerate(found)]


def measure_recall(
    flow: Workflow, ready: Ready, searched: Mapping[str, Searched],
    runs: Mapping[str, Mapping[str, Version]], depths: Mapping[str, int],
) -> None:  # fmt: skip
    """Say how many of the nearest passages each model's index finds: some queries of the model's
    first run are searched exactly as well."""
    measured = {name: next(iter(found)) for name, found in runs.items() if found}
    exact = _merged(
        flow,
        [
            _retrieve_spec(
                flow, ready, f"{name}_exact", replace(searched[name], indexes=None),
                _some_queries(flow, name, ready.tables.chosen[purpose]), depths[purpose],
            )
            for name, purpose in measured.items()
        ],
    )  # fmt: skip
    recalls = flow.bulk(
        *(
            Spec(
                name=f"{name}_recall",
                stage=Recall,
                inputs={"run": runs[name][purpose], "exact": found},
                items=[0],
            )
            for (name, purpose), found in zip(measured.items(), exact, strict=True)
        )
    )
    for (name, purpose), recall in zip(measured.items(), recalls, strict=True):
        share = recall.facts["found"] / max(1, recall.facts["wanted"])
        flow.display.say(
            f"  {name + '_index':<26} finds {share:.1%} of the {depths[purpose]:,} nearest passages"
            f" ({recall.rows} questions of {name}_{purpose})"
        )


def _some_queries(flow: Workflow, name: str, queries: Version) -> Version:
    rows = queries.read()["query"].to_numpy()
    chosen = schema.sample(rows, RECALL_QUERIES, flow.recipe.seed)
    return as_version(flow, f"{name}_recall_queries", pa.table({"query": chosen}))


def lexical(flow: Workflow, ready: Ready, purpose: str, k: int) -> Version:
    """BM25 over a purpose's queries."""
    return flow.bulk(_lexical_spec(ready, purpose, k))[0]


def _lexical_spec(ready: Ready, purpose: str, k: int) -> Spec:
    return Spec(
        name=f"bm25_{purpose}",
        stage=Lexical,
        inputs={
            "passages": ready.tables.passages,
            "queries": ready.tables.chosen[purpose],
            "texts": ready.tables.queries,
        },
        settings={"k": k},
        over="queries",
    )


def score(
    flow: Workflow, ready: Ready, name: str, run: Version, cross: Version, depth: int,
    beside: Sequence[Spec] = (),
) -> Version:  # fmt: skip
    """A run's top passages with the cross-encoder's probabilities; known pairs are not scored.

    Args:
        beside: other work for the same pool of workers.
    """
    told = _scoring(flow.recipe)
    store = pairs_folder(flow) / _pair_store(cross, told)
    spec = Spec(
        name=name,
        stage=Score,
        inputs={
            "cross": cross,
            "run": run,
            "query_tokens": ready.cross_tokens.queries,
            "passage_tokens": ready.cross_tokens.passages,
        },
        settings={"depth": depth, **told},
        over="run",
    )
    known = _known_pairs(flow.folder.draft(name, spec.identity()).path, store)
    scored = flow.bulk(_choosing(flow, replace(spec, given={"known": known})), *beside)[0]
    _keep_pairs(scored, store)
    return scored


def pairs_folder(flow: Workflow) -> Path:
    """Where scored pairs are kept: a store that several runs share, or the run's own."""
    return storage.locate(flow.recipe.cluster.pairs or flow.folder.path / "pairs").absolute()


def _choosing(flow: Workflow, spec: Spec) -> Spec:
    """A stage that chooses something by itself, told where its workers write it down."""
    path = flow.folder.draft(spec.name, spec.identity()).path / "choices.json"
    return replace(spec, given={**spec.given, "choices": str(path)})


def _scoring(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe changes a ce_score."""
    told = recipe.score
    if told.recheck is None:
        return {"precision": told.precision}
    thresholds = list(_thresholds(recipe.denoise).values())
    recheck = {"within": told.recheck, "thresholds": thresholds, "seed": recipe.seed}
    return {"precision": told.precision, "recheck": recheck}


def _pair_store(cross: Version, told: Mapping[str, Any]) -> str:
    """Scores of one cross-encoder in one precision: others would not be what was asked for."""
    plain = told == {"precision": "auto"}
    return cross.digest if plain else f"{cross.digest}-{artifacts.fingerprint(told)}"


def _known_pairs(stage: Path, store: Path) -> list[str]:
    """Files of scores made before this stage began. Written down, so that a resumed stage knows
    the same pairs, makes the same batches, and so the same bytes.

    Raises:
        UserError: the stage is not finished, and the store is not the one it was begun with.
    """
    record = stage / "known.json"
    if (stage / "manifest.json").is_file():  # Nobody will look them up.
        return []
    there = [path.name for path in _stored(store)]
    if not record.is_file():
        artifacts.write_json(record, there)
    names: list[str] = artifacts.read_json(record)
    if gone := sorted(set(names) - set(there)):
        raise UserError(
            f"{stage.name} was begun with pair scores that {storage.shown(store)} does not hold"
            f" ({gone[0]}). Give the cluster.pairs of before, or remove {storage.shown(stage)} to"
            " begin this stage again."
        )
    return [str(store / name) for name in names]


def _keep_pairs(scored: Version, store: Path) -> None:
    """Append a finished stage's new scores to the store, as links to its own files."""
    known = set(_stored(store))
    links = {store / f"{scored.path.name}-{b.number:05d}.parquet": b for b in scored.blocks}
    storage.together(
        lambda target: artifacts.link(links[target].files["pairs"], target), links.keys() - known
    )


def _stored(store: Path) -> list[Path]:
    return [path for path in storage.entries(store) if path.suffix == ".parquet"]


def pool(flow: Workflow, ready: Ready, run: Version, told: Rules) -> Version:
    """The lists that hard negatives are taken from: dual_0's run (the paper), BM25's, or both."""
    if told.pool == "dual_0":
        return run
    found = lexical(flow, ready, "train", LEXICAL_DEPTH)
    if told.pool == "bm25":
        return found
    (both,) = flow.bulk(
        Spec(
            name="both_train",
            stage=Pool,
            inputs={"dense": run, "lexical": found},
            settings={"depth": told.depth * (2 if told.fill == "unscored_tail" else 1)},
            over="dense",
        )
    )
    return both


def denoise(
    flow: Workflow, ready: Ready, run: Version, cross: Version, positives: Version, told: Rules,
    name: str = "denoise",
) -> Version:  # fmt: skip
    """Step 3's verdicts on the passages found for labelled queries."""
    if told.off:
        spec = Spec(
            name=name,
            stage=TrustAll,
            inputs={"run": run, "positives": positives},
            settings={"depth": told.depth, **_beyond(told)},
            over="run",
        )
    else:
        scored = score(flow, ready, f"{told.pool}_train_scored", run, cross, told.depth)
        spec = denoise_spec(name, scored, positives, calibrated(flow, ready, cross, told))
    (verdicts,) = flow.bulk(spec)
    return verdicts


def denoise_spec(name: str, scored: Version, positives: Version, told: Rules) -> Spec:
    """Verdicts on a scored run of labelled queries."""
    return Spec(
        name=name,
        stage=Denoise,
        inputs={"scored": scored, "positives": positives},
        settings={**_thresholds(told), **_beyond(told)},
        over="scored",
    )


def augment(flow: Workflow, ready: Ready, run: Version | None, cross: Version) -> Version | None:
    """Step 4's verdicts on the passages dual_1 found for unlabelled queries."""
    if run is None:
        flow.display.say("  augment                    no unlabelled questions: nothing to add")
        return None
    scored = score(flow, ready, "dual_1_unlabelled_scored", run, cross, flow.recipe.augment.depth)
    told = calibrated(flow, ready, cross, flow.recipe.denoise)
    (verdicts,) = flow.bulk(augment_spec("augment", scored, told))
    return verdicts


def augment_spec(name: str, scored: Version, told: Rules) -> Spec:
    """Pseudo labels from a scored run of unlabelled queries."""
    return Spec(
        name=name,
        stage=Augment,
        inputs={"scored": scored},
        settings=_thresholds(told),
        over="scored",
    )


def _thresholds(told: Rules) -> dict[str, float]:
    return told.model_dump(include={"negative_below", "positive_above"})


def _beyond(told: Rules) -> dict[str, Any]:
    """Rules the paper does not have, where they are asked for."""
    return told.model_dump(include={"filter", "promote"}, exclude_defaults=True)


def calibrated(flow: Workflow, ready: Ready, cross: Version, told: Rules) -> Rules:
    """The rules with their thresholds where ce_scores are cut: calibrated probabilities move the
    cuts and leave the scores as they are."""
    scored = dev_scored(flow, ready, cross)
    if told.calibration == "none":
        return told
    if scored is None:
        raise UserError(
            f"denoise.calibration is {told.calibration}, and there are no dev questions to fit it"
            " to. Add dev judgements, or set it to none."
        )
    pairs = calibration.labelled_pairs(scored, ready.tables.qrels["dev"].read())
    moved = calibration.moved(calibration.fit(told.calibration, pairs), _thresholds(told))
    return told.model_copy(update=moved)


def dev_scored(flow: Workflow, ready: Ready, cross: Version) -> Version | None:
    """dual_0's passages for the dev questions with their ce_scores, where something asks: a
    calibration is fitted to them, and `rocketray audit` chooses a threshold by them."""
    name, run = "dual_0_dev_scored", flow.made.get("dual_0_dev")
    asked = flow.recipe.denoise.calibration != "none" or flow.recipe.data.hide_positives
    if run is None or not asked:
        return None
    depth = min(flow.recipe.evaluate.dev_rerank, flow.recipe.denoise.depth)
    return flow.made.get(name) or score(flow, ready, name, run, cross, depth)


def distant_positives(flow: Workflow, ready: Ready, run: Version) -> Version | None:
    """With `data.positives: answers`, what counts as positive from step 2 on."""
    if flow.recipe.data.positives == "labelled":
        return None
    tables = ready.tables
    (found,) = flow.bulk(
        Spec(
            name="answer_positives",
            stage=AnswerPositives,
            inputs={"run": run, "queries": tables.queries, "passages": tables.passages},
            settings={"depth": flow.recipe.steps.cross.depth},
            over="run",
        )
    )
    if not found.rows:
        raise UserError(
            "data.positives is `answers`, but no retrieved passage holds an answer string."
            " queries.jsonl needs `answers` (or `metadata.answers`): a list of strings."
        )
    return found


def rerank(flow: Workflow, ready: Ready, cross: Version) -> None:
    """The cross-encoder over dual_2's answers to the test questions, and BM25's own answers."""
    if "test" not in ready.tables.chosen:
        return
    told = flow.recipe.evaluate
    bm25 = [_lexical_spec(ready, "test", told.k)] if told.bm25 else []
    if told.rerank:
        run = flow.made["dual_2_test"]
        score(flow, ready, "dual_2_test_scored", run, cross, told.rerank, bm25)
    elif bm25:
        flow.bulk(*bm25)


# --------------------------------------------------------------------------------------- examples


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
    chosen = schema.sample(np.unique(table["query"].to_numpy()), told.queries, flow.recipe.seed)
    kept = table.filter(pa.array(np.isin(table["query"].to_numpy(), chosen)))
    return as_version(flow, "cross_chosen_examples", kept)


def hard_examples(
    flow: Workflow, ready: Ready, name: str, verdicts: Version, positives: Version, run: Version,
    pseudo: Version | None = None, told: HardStep | None = None,
) -> Version:  # fmt: skip
    """Steps 3 and 4: hard negatives by verdict; step 4 adds the pseudo-labelled queries.

    Args:
        told: None takes the recipe's step of this name.
    """
    told = told or getattr(flow.recipe.steps, name)
    inputs = {"labelled": verdicts, "positives": positives, "passages": ready.tables.passages}
    items = [("labelled", block.number) for block in verdicts.blocks]
    if pseudo:
        inputs["unlabelled"] = pseudo
        items += [("pseudo", block.number) for block in pseudo.blocks]
    if flow.recipe.denoise.fill == "unscored_tail":
        inputs["run"] = run
    (examples,) = flow.bulk(
        Spec(
            name=f"{name}_examples",
            stage=HardExamples,
            inputs=inputs,
            settings={
                "negatives": told.negatives,
                "copies": told.copies,
                "fill": flow.recipe.denoise.fill,
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
    told = told or getattr(flow.recipe.steps, name)
    dev = dual_dev(flow, ready.tables)
    extra = dual_settings(told)
    inputs = {
        "weights": ready.dual,
        "examples": examples,
        "query_tokens": ready.dual_tokens.queries,
        "passage_tokens": ready.dual_tokens.passages,
        "qrels": ready.tables.qrels["train"],
    }
    scored = [flow.made[stage] for stage in ("denoise", "augment") if stage in flow.made]
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
    dev = _cross_dev(flow, ready, run.get("dev"))
    return train(flow, "cross", "cross", told, inputs, dev, cross_settings(told))


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


def _cross_dev(flow: Workflow, ready: Ready, run: Version | None) -> Dev | None:
    """Dev questions whose top passages by dual_0 are to be reranked."""
    if run is None:
        return None
    positives = schema.positives_of(ready.tables.qrels["dev"].read())
    table = run.read()
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


STAGES = (
    "passages", "queries",
    "qrels_train", "qrels_hidden", "qrels_hidden_positives", "qrels_dev", "qrels_test",
    "train_queries", "dev_queries", "test_queries", "unlabelled_queries",
    "initial", "initial_cross", "query_tokens", "passage_tokens",
    "dual_0_examples", "dual_0", "initial_embeddings", "dual_0_embeddings",
    "initial_index", "dual_0_index",
    "initial_test", "dual_0_train", "dual_0_dev", "dual_0_test",
    "cross_examples", "cross", "dual_0_train_scored", "dual_0_dev_scored", "denoise",
    "dual_1_examples", "dual_1", "dual_1_embeddings", "dual_1_index", "dual_1_unlabelled",
    "dual_1_test",
    "dual_1_unlabelled_scored", "augment",
    "dual_2_examples", "dual_2", "dual_2_embeddings", "dual_2_index", "dual_2_test",
    "dual_2_test_scored", "bm25_test",
)  # fmt: skip
"""Every stage, in order: what `--until` takes."""
