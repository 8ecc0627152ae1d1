"""Pairs that a cross-encoder has scored, kept so that none is scored twice.

    STORE/float32/<sha256>.npy     new scores of one block (schema.PAIRS), a link to its own file

A store is one cross-encoder's. Its folders part what must not be mixed (`kind`); a file is named
by its content, so that equal ones are one, and whoever reads it knows what it must be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rocketray import artifacts, storage
from rocketray.artifacts import Draft, Version
from rocketray.errors import UserError
from rocketray.stages.score import kind

AUTO = ("float32", "bfloat16", "float16")
"""What precision `auto` becomes, by the device that the first worker finds."""


def known_pairs(stages: Path, stage: Path, store: Path, told: Mapping[str, Any]) -> list[str]:
    """Files of scores made before this stage began, also by stages that were stopped. Written down,
    so that a stage resumed after its first block knows the same pairs, makes the same batches, and
    so the same bytes.

    Args:
        stages: the folder of all stages.
        stage: the one that asks.
        told: how it scores: what of the recipe changes a ce_score.

    Raises:
        UserError: a file is damaged; or the stage is not finished, and the store is not the one it
            was begun with.
    """
    begun = _begun(stage) if Draft(stage, "", {}).receipts() else None
    if begun is None:
        _keep_all(stages, store)
    there = _stored(store, told)
    names: list[str] = there if begun is None else begun["files"]
    if gone := sorted(set(names) - set(there)):
        raise UserError(
            f"{stage.name} was begun with pair scores that {storage.shown(store)} does not hold"
            f" ({gone[0]}). Give the cluster.pairs of before, or remove {storage.shown(stage)} to"
            " begin this stage again."
        )
    files = [store / name for name in names]
    _check(files, "" if begun is None else f" and {storage.shown(stage)}, which was begun with it")
    if begun is None:
        record = {"cross": store.name, "scoring": dict(told), "files": names}
        artifacts.write_json(stage / "known.json", record)
    return [str(file) for file in files]


def keep_pairs(stage: Path, store: Path, told: Mapping[str, Any]) -> None:
    """Link a stage's new scores, as far as there are any, to the store. A damaged file stays out:
    its pairs are scored again."""
    precision = told["precision"]
    if precision == "auto":
        precision = artifacts.chosen_precision(stage)
    if precision is None:  # No worker has begun.
        return
    folder = store / kind(precision, told.get("recheck"))
    links = {
        folder / f"{sha256}{file.suffix}": (file, sha256) for file, sha256 in _scored(stage).items()
    }

    def link(target: Path) -> None:
        file, sha256 = links[target]
        if artifacts.is_intact(file, sha256):
            artifacts.link(file, target)

    storage.together(link, links.keys() - set(storage.entries(folder)))


def _keep_all(stages: Path, store: Path) -> None:
    """Of every stage by this cross-encoder: one that was stopped, or killed before it could."""
    for record in sorted(stages.glob("*/known.json")):
        begun = _begun(record.parent)
        if begun is not None and begun["cross"] == store.name:
            keep_pairs(record.parent, store, begun["scoring"])


def _begun(stage: Path) -> dict[str, Any] | None:
    """What a stage wrote down when it began."""
    record = stage / "known.json"
    told = artifacts.read_json(record) if record.is_file() else None
    return told if isinstance(told, dict) else None  # A list is of before it said whose.


def _scored(stage: Path) -> dict[Path, str]:
    """A stage's files of new scores, as far as they are made, and their sha256."""
    if (stage / "manifest.json").is_file():
        manifest = Version.open(stage).manifest
        blocks, sha256 = manifest["blocks"], manifest["sha256"]
    else:
        blocks = list(Draft(stage, "", {}).receipts().values())
        sha256 = {name: value for block in blocks for name, value in block["sha256"].items()}
    names = [block["files"]["pairs"] for block in blocks]
    return {stage / name: sha256[name] for name in names}


def _stored(store: Path, told: Mapping[str, Any]) -> list[str]:
    """Names in the store of the scores that such a stage may come to read."""
    precisions = AUTO if told["precision"] == "auto" else [told["precision"]]
    kinds = [kind(precision, told.get("recheck")) for precision in precisions]
    return sorted(
        f"{name}/{path.name}"
        for name in kinds
        for path in storage.entries(store / name)
        if path.suffix == ".npy"
    )


def _check(files: Sequence[Path], more: str) -> None:
    """Compare files with the sha256 in their names, before anybody reads them.

    Args:
        more: what must be removed beside a damaged one.
    """
    intact = storage.together(lambda file: artifacts.is_intact(file, file.stem), files)
    for file, is_intact in zip(files, intact, strict=True):
        if not is_intact:
            raise UserError(
                f"{file} is damaged: its sha256 is {artifacts.file_sha256(file)} and should be its"
                f" name. Remove it{more}: its pairs are then scored again."
            )
