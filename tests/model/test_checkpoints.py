"""checkpoints.py: whole or not at all, checked, the newest valid one wins."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rocketray import storage
from rocketray.artifacts import file_sha256
from rocketray.model import checkpoints
from tests.s3 import Node


def save(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {"model": {"w": torch.full((3,), float(step))}, "optimizer": {}}
    return checkpoints.save(folder, step, tensors, {"skipped": step * 2}, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    assert path == tmp_path / "step-00000007"
    assert names(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.step, found.state["skipped"]) == (7, 14)
    assert found.tensors("model")["w"].tolist() == [7, 7, 7]
    assert found.tensors("optimizer") == {}
    state = json.loads((path / "state.json").read_text())
    assert state["sha256"]["model.safetensors"] == file_sha256(path / "model.safetensors")


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000002", "step-00000010"]
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 10


def test_none_at_all(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "nowhere") is None
    assert checkpoints.at(tmp_path, 3) is None


def test_a_changed_byte_is_found_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    weights = save(tmp_path, 2) / "model.safetensors"
    expected = file_sha256(weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for part in (str(weights), expected, file_sha256(weights)):
        assert part in caplog.text


@pytest.mark.parametrize("damage", ["no weights", "no state", "half a state", "other state"])
def test_any_damage_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    state = path / "state.json"
    match damage:
        case "no weights":
            (path / "model.safetensors").unlink()
        case "no state":
            state.unlink()
        case "half a state":
            state.write_text(state.read_text()[:20])
        case "other state":
            state.write_text("[]")
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert str(path) in caplog.text


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    (save(tmp_path, 2) / "state.json").unlink()
    save(tmp_path, 2)
    assert checkpoints.at(tmp_path, 2) is not None


KILL = """
import os, signal, sys
from pathlib import Path
import torch
from rocketray.model import checkpoints
checkpoints.file_sha256 = lambda file: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(Path(sys.argv[1]), 2, {"model": {"w": torch.ones(3)}}, {}, keep=2)
"""


def test_a_kill_in_the_middle_of_writing_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    killed = subprocess.run([sys.executable, "-c", KILL, tmp_path], timeout=60, check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob(".step-00000002.*.tmp"))) == 1
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    checkpoints.remove_after(tmp_path, 1)  # As whoever goes on does.
    assert names(tmp_path) == ["step-00000001"]


def test_a_save_leaves_alone_what_somebody_else_is_writing(tmp_path: Path) -> None:
    """As after a take-over, by who has not noticed yet."""
    (tmp_path / ".step-00000004.0123abcd.tmp").mkdir()
    save(tmp_path, 2)
    assert names(tmp_path) == [".step-00000004.0123abcd.tmp", "step-00000002"]


def test_what_is_newer_than_the_resumed_step_is_forgotten(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=5)
    checkpoints.remove_after(tmp_path, 1)
    assert names(tmp_path) == ["step-00000001"]


# ------------------------------------------------------------------------------ on object storage


def kept(folder: Path) -> list[str]:
    """Files in the store, once all is sent."""
    storage.settle()
    return [path.relative_to(folder).as_posix() for path in storage.files(folder)]


def test_another_node_finds_the_newest(on: Node) -> None:
    for step in (1, 2, 10):
        save(on("a"), step)
    files = ("model.safetensors", "optimizer.safetensors", "state.json")
    assert kept(on("b")) == [f"step-{n:08d}/{name}" for n in (2, 10) for name in files]
    found = checkpoints.newest(on("b"))
    assert found is not None
    assert (found.step, found.tensors("model")["w"].tolist()) == (10, [10, 10, 10])
    assert names(on("b")) == ["step-00000010"]
    assert checkpoints.at(on("b"), 2) is not None
    assert checkpoints.at(on("b"), 3) is None


@pytest.mark.parametrize("damage", ["half sent", "changed"])
def test_what_is_not_whole_in_the_store_is_passed_over(
    on: Node, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(on("a"), 1)
    path = save(on("a"), 2)
    storage.settle()
    if damage == "half sent":
        storage.remove(path / "state.json")
    else:
        (path / "model.safetensors").write_bytes(b"something else")
        storage.push(path / "model.safetensors")
    found = checkpoints.newest(on("b"))
    assert found is not None
    assert found.step == 1
    assert str(on("b") / path.name) in caplog.text


def test_what_was_never_sent_does_not_count(on: Node) -> None:
    save(on("a"), 1)
    storage.settle()
    never = Path(shutil.copytree(on("a") / "step-00000001", on("a") / "step-00000002"))
    found = checkpoints.newest(on("a"))
    assert found is not None
    assert found.step == 1
    checkpoints.remove_after(on("a"), 1)
    assert not never.exists()


def test_what_is_newer_in_the_store_is_forgotten(on: Node) -> None:
    for step in (1, 2, 3):
        save(on("a"), step, keep=5)
    storage.settle()
    checkpoints.remove_after(on("b"), 1)
    assert {name.partition("/")[0] for name in kept(on("b"))} == {"step-00000001"}
