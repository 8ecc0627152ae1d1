"""What tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rocketray import loop
from rocketray.progress import Display
from tests.runs import ALONE

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
