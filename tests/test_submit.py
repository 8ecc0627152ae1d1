"""Runs as jobs of a real Ray head: submitted as the documentation says, watched, stopped and
submitted again, and refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import heads
from tests.heads import Head, until
from tests.runs import ALONE, content

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ON_RAY = ("cluster.train.threads=1", "cluster.bulk.actors=0", "steps.dual_0.epochs=20")
"""Long enough to be stopped in the middle."""
ENDS = ("SUCCEEDED", "FAILED", "STOPPED")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with heads.head("--num-cpus=4") as found:
        yield found


def submit(head: Head, name: str, out: Path, *settings: str, until: str | None = None) -> None:
    """As docs/operations.md says. A head's agent, which takes the job, starts last of all."""
    command = ["job", "submit", "--submission-id", name, "--working-dir", ".", "--no-wait", "--"]
    command += ["python", "jobs/run.py", "tiny", "--out", str(out)]
    command += ["--until", until] if until else []
    for setting in settings:
        command += ["--set", setting]
    deadline = time.monotonic() + heads.SECONDS
    while (done := head.ray(*command)).returncode:
        assert time.monotonic() < deadline, done.stdout


def job(head: Head, name: str) -> dict[str, Any]:
    found: dict[str, Any] = head.ask(f"/api/jobs/{name}")
    return found


def ended(head: Head, name: str) -> dict[str, Any]:
    until(lambda: job(head, name)["status"] in ENDS, f"{name} ends", 600)
    return job(head, name)


def lines(head: Head, name: str) -> list[str]:
    """Of the job's log, as `ray job logs` has them."""
    text: str = head.ask(f"/api/jobs/{name}/logs")["logs"]
    assert "\r" not in text
    assert "\x1b" not in text
    return text.splitlines()


def test_a_job_says_how_far_it_is_in_lines(head: Head, tmp_path: Path) -> None:
    submit(head, "whole", tmp_path / "run", *ALONE)
    assert ended(head, "whole")["status"] == "SUCCEEDED", lines(head, "whole")
    said = lines(head, "whole")
    assert any("dual_2 " in line and " steps, " in line for line in said)
    assert any("dual_0_train_scored " in line and "7/7 blocks" in line for line in said)
    assert said[-1] == f"report: {tmp_path / 'run' / 'report.html'}"


def test_a_stopped_job_goes_on_as_another(head: Head, tmp_path: Path) -> None:
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    submit(head, "first", out, *ON_RAY, until="dual_0")
    checkpoint = "stages/dual_0-*/checkpoints/step-00000008/state.json"
    until(lambda: list(out.glob(checkpoint)), checkpoint, 300)
    head.ask("/api/jobs/first/stop", post=True)  # What `ray job stop` asks.
    assert ended(head, "first")["status"] == "STOPPED"
    assert lines(head, "first")[-1] == "rocketray: stopped. The same command goes on from here."
    submit(head, "second", out, *ON_RAY, until="dual_0")
    submit(head, "undisturbed", undisturbed, *ON_RAY, until="dual_0")
    for name in ("second", "undisturbed"):
        assert ended(head, name)["status"] == "SUCCEEDED", lines(head, name)
        assert lines(head, name)[-1].startswith("Stopped after dual_0, as asked.")
    skipped = [line.split()[0] for line in lines(head, "second") if "skipped" in line]
    assert {"passages", "passage_tokens", "dual_0_examples"} <= set(skipped)
    assert content(out) == content(undisturbed)


def test_a_refused_recipe_fails_the_job_with_its_reason(head: Head, tmp_path: Path) -> None:
    submit(head, "refused", tmp_path / "run", "steps.dual_0.epochs=-1")
    found = ended(head, "refused")
    assert (found["status"], found["driver_exit_code"]) == ("FAILED", 2)
    last = lines(head, "refused")[-1]
    assert last.startswith("rocketray: recipe 'tiny': steps.dual_0.epochs = -1: ")
    assert last in found["message"]
