"""Checkpoints that survive a kill at any moment, and never run code when read.

    FOLDER/step-00000123/  *.safetensors  state.json (with the sha256 of each safetensors file)

Ray's own checkpoints are neither atomic nor checked; these are written under a name no other
attempt uses, synced, and renamed. One process writes. On object storage (storage.py) they are sent
in the background, state.json last, so that half of one is no valid one; old ones go after new ones.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rocketray import storage
from rocketray.artifacts import file_sha256, place

Tensors = Mapping[str, torch.Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A valid one: every file's sha256 is what `state.json` says."""

    path: Path
    step: int
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `NAME.safetensors`, on the CPU."""
        tensors: dict[str, torch.Tensor] = load_file(self.path / f"{name}.safetensors")
        return tensors


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Args:
        tensors: by file name, without the suffix.
        state: anything JSON holds.
    """
    path = folder / f"step-{step:08d}"
    temporary = folder / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir(parents=True)
    sha256 = {}
    for name, content in tensors.items():
        file = temporary / f"{name}.safetensors"
        save_file({key: value.detach().contiguous() for key, value in content.items()}, file)
        sha256[file.name] = file_sha256(file)
    text = json.dumps({**state, "step": step, "sha256": sha256}, indent=1, sort_keys=True)
    (temporary / "state.json").write_text(text + "\n", encoding="utf-8")
    # Instead of what an attempt left that was found corrupt, or that ran further than this.
    place(temporary, path)
    if storage.mirrored(path):
        storage.later(lambda: _send(path, keep))
    else:
        _clean(folder, keep)
    return path


def _send(path: Path, keep: int) -> None:
    storage.together(storage.push, path.glob("*.safetensors"))
    storage.push(path / "state.json")
    _clean(path.parent, keep)


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint. A corrupt one is passed over, with a warning that names it."""
    for path in reversed(_steps(folder)):
        if checkpoint := _read(path):
            return checkpoint
    return None


def at(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of one step, if it is there and valid."""
    path = folder / f"step-{step:08d}"
    return _read(path) if path in _steps(folder) else None


def remove_after(folder: Path, step: int) -> None:
    """Forget what is newer than the step a run goes on from: it will be made again.

    And what killed attempts left half written. Not in `save`: whoever was superseded while it wrote
    would take away what the new writer is writing.
    """
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    for path in {*_steps(folder), *folder.glob("step-*")}:  # Here may be what was never sent.
        if path.name > f"step-{step:08d}":
            storage.remove(path)


def _steps(folder: Path) -> list[Path]:
    return [path for path in storage.entries(folder) if path.name.startswith("step-")]


def _read(path: Path) -> Checkpoint | None:
    """None, and a loud warning, unless every file is there and has the bytes it should have."""
    storage.fetch(path / "state.json")
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        expected, step = dict(state["sha256"]), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("Skipping checkpoint %s: state.json is unusable (%r).", path, error)
        return None
    for name, sha256 in expected.items():
        found = _sha256(path / name)
        if found != sha256 and storage.mirrored(path) and storage.fetch(path / name):
            found = _sha256(path / name)
        if found != sha256:
            log.warning(
                "Skipping checkpoint file %s: expected sha256 %s, found %s.",
                path / name, sha256, found,
            )  # fmt: skip
            return None
    return Checkpoint(path, step, state)


def _sha256(path: Path) -> str:
    return file_sha256(path) if path.is_file() else "no such file"


def _clean(folder: Path, keep: int) -> None:
    for path in _steps(folder)[:-keep]:
        storage.remove(path)
