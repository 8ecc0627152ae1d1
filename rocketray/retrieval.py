"""Encode the corpus, index it where the recipe wants that, and find each query's passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from rocketray import schema
from rocketray.artifacts import Version
from rocketray.preparation import Ready
from rocketray.recipe import Recipe
from rocketray.stages.encode import Encode
from rocketray.stages.index import FillIndex, Recall, TrainIndex
from rocketray.stages.lexical import Lexical
from rocketray.stages.retrieve import Group, MergeTopk, Retrieve, grid, groups_of
from rocketray.tables import as_version
from rocketray.workflow import Spec, Workflow

RECALL_QUERIES = 200
"""So many questions measure an index: enough to know its recall to about one point."""


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
            Spec(
                name=f"{name}_embeddings",
                stage=Encode,
                inputs={"model": model, "tokens": ready.dual_tokens.passages},
                settings=flow.recipe.encode.model_dump(),
                over="tokens",
                unit="passages",
                people=ready.tables.passages,
            ).choosing()
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
    return {
        "train": max(recipe.steps.cross.depth, recipe.denoise.deepest),
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
        people=ready.tables.queries,
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
    return flow.bulk(lexical_spec(ready, purpose, k))[0]


def lexical_spec(ready: Ready, purpose: str, k: int) -> Spec:
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
