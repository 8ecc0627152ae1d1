"""The arrows of the design: who may import whom, read from the source with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rocketray

PACKAGE = Path(rocketray.__file__).parent
JOBS = PACKAGE.parent / "jobs"

DATA = {"errors", "schema", "storage", "artifacts", "recipe"}
FLOW = {*DATA, "formats", "model", "stages", "workflow", "tables"}
ALLOWED = {
    "errors": set[str](),
    "schema": {"errors"},
    "answers": set[str](),
    "progress": set[str](),
    "meanwhile": set[str](),
    "lines": {"errors"},
    "storage": {"errors"},
    "artifacts": {"errors", "storage"},
    "paper": set[str](),
    "recipe": {"errors", "paper"},
    "calibration": {"errors", "artifacts"},
    "formats": {*DATA, "lines", "answers"},
    "measures": {*DATA, "lines", "answers"},
    "report": {*DATA, "lines", "answers", "measures"},
    "model": DATA,
    "stages": {*DATA, "lines", "answers", "formats", "model"},
    "engine": {*DATA, "model", "meanwhile"},
    "workflow": {*DATA, "engine", "progress", "meanwhile"},
    "tables": {*DATA, "formats", "stages", "workflow"},
    "preparation": FLOW,
    "retrieval": {*FLOW, "preparation"},
    "pair_store": {*DATA, "stages"},
    "labelling": {*FLOW, "calibration", "pair_store", "preparation", "retrieval"},
    "learning": {*FLOW, "engine", "progress", "preparation", "retrieval"},
    "pipeline": {"recipe", "workflow", "preparation", "retrieval", "labelling", "learning"},
}
"""Room -> rooms it may import beside itself. Rooms not named sit on top: loop, cli, and the like.
Nobody below them may import them, for they stand in no list."""


def imported(source: str, module: str) -> Iterator[str]:
    """Every module that a module's source imports, wherever in it, by its full name.

    `from a import b` gives `a.b`: b may be a module, and if it is not, the name still starts
    with the module's. Relative imports are resolved against `module`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def violations(module: str, source: str) -> list[str]:
    """What a module imports against the arrows."""
    room = module.split(".")[1] if module.startswith("rocketray.") else module.split(".")[0]
    found = []
    for name in imported(source, module):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "ray" and room != "engine":
            found.append(f"{module} imports {name}: only engine may")
        elif top != "rocketray":
            continue
        elif room == "jobs" and other != "cli":
            found.append(f"{module} imports {name}: a job is a call of cli")
        elif room == other == "stages" and name.split(".")[2] != module.split(".")[-1]:
            found.append(f"{module} imports {name}: stages never import each other")
        elif room in ALLOWED and other not in {room, *ALLOWED[room]}:
            found.append(f"{module} imports {name}: {room} may not")
    return found


def modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        yield ".".join(path.relative_to(folder.parent).with_suffix("").parts), path


EVERY = [*modules(PACKAGE), *modules(JOBS)]


@pytest.mark.parametrize(("module", "path"), EVERY, ids=[module for module, _ in EVERY])
def test_arrows(module: str, path: Path) -> None:
    assert violations(module, path.read_text(encoding="utf-8")) == []


def test_every_room_of_the_table_exists() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir()}
    assert set(ALLOWED) <= rooms


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rocketray.stages.encode", "import ray"),
        ("rocketray.model.trainer", "from ray.train import get_context"),
        ("rocketray.pipeline", "def f():\n    import ray.data"),
        ("rocketray.loop", "from importlib import import_module\nimport_module('ray')"),
        ("rocketray.workflow", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import ray"),
        ("rocketray.stages.score", "from rocketray.stages.retrieve import Retrieve"),
        ("rocketray.stages.score", "from rocketray.stages import retrieve"),
        ("rocketray.stages.score", "from . import retrieve"),
        ("rocketray.stages.score", "from .retrieve import Retrieve"),
        ("rocketray.stages.score", "import rocketray.engine.bulk"),
        ("rocketray.model.dev", "from rocketray.stages.retrieve import Retrieve"),
        ("rocketray.model.dev", "from rocketray import formats"),
        ("rocketray.model.dev", "from rocketray.engine import bulk"),
        ("rocketray.engine.bulk", "from rocketray.stages.encode import Encode"),
        ("rocketray.schema", "from rocketray.artifacts import Version"),
        ("rocketray.errors", "from rocketray.schema import RUN"),
        ("rocketray.formats.beir", "from rocketray.stages.ingest import Ingest"),
        ("rocketray.measures", "from rocketray.model.top_k import top_k"),
        ("rocketray.report.page", "from rocketray.pipeline import STAGES"),
        ("rocketray.pipeline", "from rocketray.loop import run"),
        ("rocketray.retrieval", "from rocketray.labelling import score"),
        ("rocketray.preparation", "from rocketray.pipeline import run"),
        ("jobs.run", "from rocketray.loop import run"),
        ("jobs.run", "import ray"),
    ],
)
def test_planted_violations_are_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rocketray.engine.bulk", "import ray.data"),
        ("rocketray.stages.score", "import arrayed, raylib, numpy"),
        ("rocketray.stages.ingest", "from rocketray.formats import cut"),
        ("rocketray.formats.beir", "from .sources import Source"),
        ("rocketray.measures", "from rocketray import schema"),
        ("jobs.run", "from rocketray.cli import main"),
    ],
)
def test_allowed_imports_are_no_violations(module: str, source: str) -> None:
    assert violations(module, source) == []
