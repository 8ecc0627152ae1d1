"""A run that was killed anywhere and started again leaves the bytes of one that was not. With Ray:
test_resume_on_storage.py."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.runs import ALONE, content, finish, kill_at

PLACES = (
    "stages/passages-*/receipts/00003.json",
    "stages/dual_0-*/checkpoints/step-00000004/state.json",
    "stages/dual_0_embeddings-*/receipts/00002.json",
    "stages/cross-*/checkpoints/step-00000010/state.json",
    "stages/dual_0_train_scored-*/receipts/00002.json",
    "stages/dual_2-*/checkpoints/step-00000008/state.json",
    "stages/dual_2_test_scored-*/receipts/00001.json",
)
"""In the middle of a bulk stage or of a training, one after another."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_seven_places(undisturbed: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    for place in PLACES:
        assert kill_at(killed, place, *ALONE) == -signal.SIGKILL
    text = finish(killed, *ALONE)
    assert content(killed) == content(undisturbed)
    last = text.rpartition("rocketray: recipe tiny")[2]
    assert "dual_1                     finished before, skipped" in last


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("settings", [ALONE, ("cluster.bulk.actors=0",)], ids=["alone", "ray"])
def test_interrupted_says_how_to_go_on(tmp_path: Path, settings: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    place = "stages/dual_0-*/checkpoints/step-00000004/state.json"
    # Long enough that Ray's abort, which takes its time, does not come after the end.
    more = ("steps.dual_0.epochs=60", "steps.dual_0.checkpoint_every=4")
    assert kill_at(out, place, *settings, *more, how=signal.SIGINT) == 130
    assert "The same command goes on from here" in out.with_suffix(".log").read_text()
