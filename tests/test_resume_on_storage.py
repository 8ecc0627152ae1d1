"""A run on object storage, over a network that fails, killed and gone on with on a new machine: the
bucket has the bytes of a run that nothing disturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rocketray import storage
from rocketray.search import Searcher
from tests import s3
from tests.runs import ALONE, FEW, content, downloaded, finish, kill_at
from tests.s3 import Node

PLACES = (
    "stages/dual_0-*/checkpoints/step-00000008/state.json",
    "stages/dual_0_train_scored-*/receipts/00001.json",
    "stages/dual_2-*/best/*/state.json",
)


def check(out: Path, undisturbed: Path, folder: Path) -> None:
    bucket = downloaded(out, folder / "downloaded")
    assert content(bucket) == content(undisturbed)
    assert names(bucket) == names(undisturbed)


def names(folder: Path) -> set[str]:
    """All files but those that are called after a process, and the scratch that is one node's."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    own = {"writers", "tensorboard", "tiny"}
    return {path.as_posix() for path in files if own.isdisjoint(path.parts)}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_on_three_machines(
    on: Node, undisturbed: Path, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.proxy(s3_server, s3.some(seed=5, share=0.03, stalls=1)) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for node, place in enumerate(PLACES):
            assert kill_at(on(f"machine-{node}"), place, *ALONE) == -signal.SIGKILL
        out = on("last-machine")
        text = finish(out, *ALONE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    assert "dual_1                     finished before, skipped" in text
    assert min(proxy.faults[kind] for kind in ("busy", "cut", "lose", "stall")) > 0
    check(out, undisturbed, tmp_path)
    url = storage.shown(on("reader"))
    assert Searcher(url).search("what is it", 3) == Searcher(undisturbed).search("what is it", 3)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_driver_killed_while_ray_trains_and_scores(
    on: Node, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the verdicts: what comes after them does no other kind of work. The undisturbed one
    does its bulk work without Ray, which changes no byte."""
    undisturbed = tmp_path / "undisturbed"
    finish(undisturbed, *FEW, "cluster.bulk.actors=0", until="denoise")
    with s3.proxy(s3_server, s3.some(seed=6, share=0.03, stalls=1)) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for node, place in enumerate(PLACES[:2]):
            kill_at(on(f"machine-{node}"), place, *FEW)
        out = on("last-machine")
        finish(out, *FEW, until="denoise")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    assert proxy.faults[""] < sum(proxy.faults.values())
    check(out, undisturbed, tmp_path)
