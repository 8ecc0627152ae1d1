"""What tests of several rooms share."""

from __future__ import annotations

import os
import resource
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from rocketray import loop, storage
from rocketray.progress import Display
from tests import s3
from tests.runs import ALONE, finish

if TYPE_CHECKING:
    from tests.test_ablation import Place

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # A machine that is busy breaks no test.

SMALLER = (
    *ALONE,
    "data.passages=60",
    "data.queries=40",
    "blocks.passages=16",
    *(f"steps.{step}.epochs=1" for step in ("dual_0", "cross", "dual_1", "dual_2")),
    *(f"steps.{step}.evaluations=1" for step in ("dual_0", "cross", "dual_1", "dual_2")),
)
"""Settings that make the recipe `tiny` a matter of seconds."""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over 60 made-up passages. Read only: whoever writes copies it."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    loop.run("tiny", out, overrides=SMALLER, display=Display(quiet=True))
    return out


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the recipe `tiny` in one process, as people start it. Read only."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(out, *ALONE)
    return out


@pytest.fixture(scope="session")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Any]]:
    """An ablation of two seeds, and what came of it. Read only: whoever writes copies it."""
    from tests.test_ablation import Place  # Only now: a fault in there is no other test's.

    with pytest.MonkeyPatch.context() as monkeypatch:
        place = Place(tmp_path_factory.mktemp("ablation")).watched(monkeypatch)
        return place, place.run()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3 server on loopback."""
    with s3.server(tmp_path_factory.mktemp("s3") / "moto.log") as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The url of a new bucket; the environment is a node's that may use it, with an empty cache."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3.make_bucket(s3_server, name)
    for variable, value in s3.ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("ROCKETRAY_CACHE", str(tmp_path / "node"))
    return f"s3://{name}"


@pytest.fixture
def on(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> s3.Node:
    """`on("b")` goes to another machine, and says where the bucket's folder `run` is there."""

    def go(node: str) -> Path:
        monkeypatch.setenv("ROCKETRAY_CACHE", str(tmp_path / node))
        return storage.locate(f"{bucket}/run")

    return go


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process may open some sixteen files more than it has open now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 17, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
