"""A cluster that starts at no machine, as cluster.yaml's does: machines come for work and go after
it, and one that is lost in the middle changes no byte. Slow."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import heads
from tests.heads import Head, until
from tests.runs import FEW, content, log_of, start, training_log

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(sys.platform != "linux", reason="finds a machine's processes in /proc"),
]
LAST = "dual_0_train_scored"
SETTINGS = (
    *FEW,
    "cluster.train.workers=2",
    "cluster.train.threads=1",
    # Long enough to lose a machine in the middle.
    "blocks.passages=4",
    "blocks.queries=8",
    "steps.dual_0.epochs=12",
)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with heads.head("--num-cpus=0", machines=4) as found, pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.setenv(name, found.environment[name])
        patch.setenv("RAY_ADDRESS", found.address)
        yield found


def maker(out: Path, stage: str) -> int:
    """The process that made the newest block of a stage."""
    receipts = out.glob(f"stages/{stage}-*/receipts/*.json")
    newest = max(receipts, key=lambda path: path.stat().st_mtime_ns)
    return int(json.loads(newest.read_text())["about"]["worker"].rpartition(":")[2])


def trainer(out: Path, stage: str) -> int:
    """The process of the last training worker."""
    return int(training_log(out, stage)[0]["start"]["pids"][-1])


LOSSES: list[tuple[str, str, Callable[[Path, str], int]]] = [
    ("dual_0", "checkpoints/step-*/state.json", trainer),
    ("dual_0_embeddings", "receipts/*.json", maker),
    (LAST, "receipts/*.json", maker),
]
"""In training, in encoding, in scoring: where it has come to, and whose machine is lost then."""


def test_machines_come_and_go_and_one_lost_in_each_kind_of_work_changes_no_byte(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    assert head.machines() == 0
    with start(out, *SETTINGS, "cluster.bulk.actors=1", until=LAST) as process:

        def come_to(where: str) -> None:
            there = lambda: process.poll() is not None or any(out.glob(where))  # noqa: E731
            until(there, where, 300)
            assert process.poll() is None, log_of(out).read_text()[-4000:]

        come_to("stages/*/receipts/*.json")
        assert head.machines() == 1
        come_to("stages/dual_0-*/log.jsonl")
        assert head.machines() == 2
        for stage, place, worker in LOSSES:
            come_to(f"stages/{stage}-*/{place}")
            # With nothing in between: a worker that has ended by itself leads to no machine.
            os.kill(heads.parents()[worker(out, stage)], signal.SIGKILL)
        assert process.wait(timeout=400) == 0, log_of(out).read_text()[-4000:]
    check_log(out)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name)  # On a Ray of its own, which no machine must come for.
    with start(undisturbed, *SETTINGS, "cluster.bulk.actors=0", until=LAST) as process:
        assert process.wait(timeout=400) == 0, log_of(undisturbed).read_text()[-4000:]
    assert content(out) == content(undisturbed)
    until(lambda: head.machines() == 0, "the machines are gone", heads.IDLE + 60)


def check_log(out: Path) -> None:
    """It waited for machines aloud, and training was begun anew from a checkpoint."""
    said = log_of(out).read_text()
    waits = "  waiting for machines. "
    assert f"{waits}1 bulk worker asks for CPU 1; 1 machine with CPU 0 (0 free) could" in said
    asked = "2 training workers ask for CPU 1 each; "
    # The machine of the blocks is still there, or was idle for too long.
    assert re.search(rf"{re.escape(waits + asked)}[12] machines? with CPU [01] ", said)
    starts = [line for line in training_log(out, "dual_0") if "start" in line]
    assert [line["start"]["from_step"] > 0 for line in starts] == [False, True]
