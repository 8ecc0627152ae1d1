"""Whole runs as people start them, in processes of their own, and what they leave.

`out` may be a mirror of object storage: the run is told its url, and the environment says the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocketray import storage

ALONE = ("cluster.train.workers=0", "cluster.bulk.actors=0", "cluster.train.threads=1")
"""Settings for a run without Ray: everything in one process."""
FEW = ("steps.dual_0.evaluations=1", "steps.cross.evaluations=1", "steps.cross.epochs=1")
"""With Ray, where starts take the time: how well it learns is not asked."""
PATIENCE = 480.0
"""Seconds until a run must have come to where it is to be killed."""


@contextmanager
def start(
    out: Path, *settings: str, recipe: str = "tiny", until: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`rocketray run RECIPE --out OUT`; its output goes to `log_of(out)`.

    Whatever fails inside, it ends there: it has a session of its own and would go on for minutes.
    """
    command = [sys.executable, "-m", "rocketray.cli", "run", recipe, "--out", storage.shown(out)]
    command += ["--until", until] if until else []
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log_of(out).open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True,
            preexec_fn=_hear_interrupts,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _hear_interrupts() -> None:
    """A shell's background job ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def training_log(out: Path, stage: str) -> list[dict[str, Any]]:
    """What a training has logged so far, line by line."""
    (log,) = out.glob(f"stages/{stage}-*/log.jsonl")
    whole, _, _ = log.read_text().rpartition("\n")  # What follows is being written.
    return [json.loads(line) for line in whole.splitlines()]


def log_of(out: Path) -> Path:
    """Beside the folder, or beside the cache that its mirror is in."""
    if storage.mirrored(out):
        return Path(os.environ["ROCKETRAY_CACHE"]).with_suffix(".log")
    return out.with_suffix(".log")


def finish(out: Path, *settings: str, recipe: str = "tiny", until: str | None = None) -> str:
    """Run to the end; returns all that was printed by this and earlier starts."""
    with start(out, *settings, recipe=recipe, until=until) as process:
        code = process.wait(timeout=900)
    text = log_of(out).read_text()
    assert code == 0, text[-4000:]
    return text


def kill_at(out: Path, pattern: str, *settings: str, how: int = signal.SIGKILL) -> int:
    """Start a run and end its driver once a file matches; returns the exit code."""
    deadline = time.monotonic() + PATIENCE
    with start(out, *settings) as process:
        while not any(out.glob(pattern)):
            assert process.poll() is None, f"{pattern}: {log_of(out).read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{pattern} did not come"
            time.sleep(0.01)
        process.send_signal(how)
        return process.wait(timeout=120)


def content(out: Path) -> dict[str, str]:
    """sha256 of every file that must repeat: blocks, models, manifests, metrics, TREC runs."""
    files = [*out.glob("metrics.json"), *out.glob("runs/*.trec")]
    for pattern in ("blocks/*", "model/**/*", "manifest.json"):
        files += [path for path in out.glob(f"stages/*/{pattern}") if path.is_file()]
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def downloaded(folder: Path, target: Path) -> Path:
    """The store's files, as an ordinary folder."""
    for path in storage.files(folder):
        found = storage.read(path)
        assert found is not None
        to = target / path.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(found)
    return target
