"""All that stands before the first step: tables, initial weights, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rocketray import artifacts
from rocketray.artifacts import Version
from rocketray.errors import UserError
from rocketray.formats import Dataset
from rocketray.formats.generated import words
from rocketray.model import index, weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.tokens import Tokenizer
from rocketray.recipe import Cross, Dual
from rocketray.stages.tokenise import Tokenise
from rocketray.tables import Tables, read_tables
from rocketray.workflow import Spec, Workflow


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


def prepare(flow: Workflow, dataset: Dataset) -> Ready:
    """Tables, initial weights and tokens."""
    tables = read_tables(flow, dataset)
    check_calibration(flow.recipe.denoise.calibration, tables)
    dual = initial_dual(flow, flow.recipe.model.dual)
    check_index(flow, dual)
    cross = initial_cross(flow, flow.recipe.model.cross)
    dual_tokens, cross_tokens = tokenise(flow, tables, dual, cross)
    return Ready(tables, dual, cross, dual_tokens, cross_tokens)


def check_calibration(told: str, tables: Tables) -> None:
    """Before anything is trained, not when thousands of pairs have been scored."""
    if told != "none" and "dev" not in tables.chosen:
        raise UserError(
            f"denoise.calibration is {told}, and there are no dev questions to fit it to. Add dev"
            " judgements, or set it to none."
        )


def check_index(flow: Workflow, dual: Version) -> None:
    """Before hours are spent on embeddings that the recipe's index would not take."""
    told = flow.recipe.retrieve
    if told.index:
        size = DualEncoder.open(artifacts.brought(dual.path / "model")).size
        index.check(told.index, told.probe, size)


def initial_dual(flow: Workflow, told: Dual, name: str = "initial") -> Version:
    """The dual encoder before any training; every dual step starts from it again."""
    settings = told.model_dump(mode="json", exclude={"weights"})

    def make(folder: Path) -> dict[str, Any]:
        source = weights_of(flow, told.weights)
        model = DualEncoder.create(source, **told.model_dump(exclude={"weights"}))
        artifacts.publish_folder(model.save, folder / "model")
        return {}

    return flow.files(name, from_weights(flow, told.weights, settings), [], make)


def initial_cross(flow: Workflow, told: Cross) -> Version:
    """The cross-encoder before any training: given weights and a seeded new head."""
    settings = {**told.model_dump(mode="json", exclude={"weights"}), "seed": flow.recipe.seed}

    def make(folder: Path) -> dict[str, Any]:
        source = weights_of(flow, told.weights)
        model = CrossEncoder.create(
            source, layers=told.layers, length=told.length, dropout=told.dropout,
            seed=flow.recipe.seed,
        )  # fmt: skip
        artifacts.publish_folder(model.save, folder / "model")
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
    suffixes = (".safetensors", ".json", ".txt", ".model")
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
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
            people=table,
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
    return folder / "query" if "model/query/config.json" in model.manifest["sha256"] else folder
