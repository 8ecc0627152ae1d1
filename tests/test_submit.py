"""Runs as jobs of a real Ray head: submitted as the documentation says, watched, stopped and
submitted again, and refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rocketray import artifacts
from tests import heads
from tests.heads import Head, until
from tests.runs import ALONE, FEW, content

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ON_RAY = (
    *FEW,
    "cluster.train.threads=1",
    "cluster.bulk.actors=0",
    # Long enough to be stopped in the middle.
    "steps.dual_0.epochs=20",
)
ENDS = ("SUCCEEDED", "FAILED", "STOPPED")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with heads.head("--num-cpus=4") as found:
        yield found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose workers have a name that no installed rocketray gives them."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("rocketray", "jobs"):
        shutil.copytree(heads.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__py*"))
    bulk = folder / "rocketray/engine/bulk.py"
    bulk.write_text(bulk.read_text() + '\n\ndef _name() -> str:\n    return "of the job"\n')
    return folder


def submit(
    head: Head, name: str, out: Path, *settings: str,
    until: str | None = None, folder: Path = Path("."),
) -> None:  # fmt: skip
    """As docs/operations.md says. A head's agent, which takes the job, starts last of all."""
    command = ["job", "submit", "--submission-id", name, "--working-dir", str(folder), "--no-wait"]
    command += ["--", "python", "jobs/run.py", "tiny", "--out", str(out)]
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
    until(lambda: job(head, name)["status"] in ENDS, f"{name} ends", 1200)
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
    """To the end."""
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    submit(head, "first", out, *ON_RAY)
    checkpoint = "stages/dual_0-*/checkpoints/step-00000008/state.json"
    until(lambda: list(out.glob(checkpoint)), checkpoint, 300)
    head.ask("/api/jobs/first/stop", post=True)  # What `ray job stop` asks.
    assert ended(head, "first")["status"] == "STOPPED"
    assert lines(head, "first")[-1] == "rocketray: stopped. The same command goes on from here."
    submit(head, "second", out, *ON_RAY)
    submit(head, "undisturbed", undisturbed, *ON_RAY, until="dual_0")
    for name, last in [("undisturbed", "Stopped after dual_0, as asked."), ("second", "report: ")]:
        assert ended(head, name)["status"] == "SUCCEEDED", lines(head, name)
        assert lines(head, name)[-1].startswith(last)
    skipped = [line.split()[0] for line in lines(head, "second") if "skipped" in line]
    assert {"passages", "passage_tokens", "dual_0_examples"} <= set(skipped)
    assert content(undisturbed).items() <= content(out).items()


def test_workers_run_the_code_that_came_with_the_job(
    head: Head, tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    submit(head, "code", out, "cluster.bulk.actors=2", until="passages", folder=tree)
    assert ended(head, "code")["status"] == "SUCCEEDED", lines(head, "code")
    receipts = map(artifacts.read_json, out.glob("stages/passages-*/receipts/*.json"))
    assert {receipt["about"]["worker"] for receipt in receipts} == {"of the job"}


def test_a_refused_recipe_fails_the_job_with_its_reason(head: Head, tmp_path: Path) -> None:
    submit(head, "refused", tmp_path / "run", "steps.dual_0.epochs=-1")
    found = ended(head, "refused")
    assert (found["status"], found["driver_exit_code"]) == ("FAILED", 2)
    last = lines(head, "refused")[-1]
    assert last.startswith("rocketray: recipe 'tiny': steps.dual_0.epochs = -1: ")
    assert last in found["message"]


def test_what_fails_in_a_worker_fails_the_job_with_its_reason(head: Head, tmp_path: Path) -> None:
    submit(head, "broken", tmp_path / "run", *ON_RAY, "steps.dual_0.learning_rate=1e30")
    found = ended(head, "broken")
    assert (found["status"], found["driver_exit_code"]) == ("FAILED", 2)
    last = lines(head, "broken")[-1]
    assert "5 steps in a row were no numbers" in last
    assert last in found["message"]


def test_what_no_machine_holds_is_refused_before_anything_is_made(
    head: Head, tmp_path: Path
) -> None:
    asked = ("cluster.train.workers=8", "cluster.train.gpus=true")
    submit(head, "impossible", tmp_path / "run", *asked)
    found = ended(head, "impossible")
    assert (found["status"], found["driver_exit_code"]) == ("FAILED", 2)
    last = lines(head, "impossible")[-1]
    assert last.startswith("rocketray: 8 training workers ask for CPU 1, GPU 1 each; 1 machine")
    assert last in found["message"]
    assert not (tmp_path / "run" / "stages").exists()
