"""The scripts for `ray job submit`: one verb each, also where the package is not installed."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import rocketray
from rocketray import cli

JOBS = sorted((Path(rocketray.__file__).parents[1] / "jobs").glob("*.py"))
VERBS = [job.stem for job in JOBS]


def test_every_job_is_a_verb() -> None:
    assert {"run", "quickstart", "search", "evaluate", "train"} <= set(VERBS)
    group = typer.main.get_command(cli.app)
    assert set(VERBS) <= set(getattr(group, "commands", {}))


@pytest.mark.parametrize("job", JOBS, ids=VERBS)
def test_passes_its_arguments_on(job: Path, tmp_path: Path) -> None:
    """In a working directory of its own, with nothing installed (-S), beside a stand-in."""
    (tmp_path / "jobs").mkdir()
    shutil.copy(job, tmp_path / "jobs")
    (tmp_path / "rocketray").mkdir()
    (tmp_path / "rocketray/__init__.py").touch()
    (tmp_path / "rocketray/cli.py").write_text("main = print\n")
    command = [sys.executable, "-S", f"jobs/{job.name}", "a b", "--set", "c=d"]
    found = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert ast.literal_eval(found.stdout) == [job.stem, "a b", "--set", "c=d"]


@pytest.mark.parametrize("job", JOBS, ids=VERBS)
def test_says_how_to_start_it(job: Path) -> None:
    words = ast.get_docstring(ast.parse(job.read_text())) or ""
    assert f"python jobs/{job.name} " in words
    assert f"ray job submit --working-dir . -- python jobs/{job.name} " in words


def test_the_real_command_answers(tmp_path: Path) -> None:
    """--help reaches the verb through the script, from any folder."""
    script = next(job for job in JOBS if job.stem == "evaluate")
    command = [sys.executable, str(script), "--help"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Measure any TREC run" in found.stdout
