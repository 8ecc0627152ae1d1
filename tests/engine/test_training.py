"""Training on Ray Train: the number of workers changes nothing but rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import ALONE, start

SETTINGS = (
    "steps.dual_0.epochs=15",
    "steps.dual_0.evaluations=1",
    "steps.dual_0.checkpoint_every=100",
    "model.dual.dropout=0.1",
    "cluster.train.threads=1",
)


def losses(out: Path, *settings: str) -> list[float]:
    """The first 50 losses of dual_0."""
    process = start(out, *settings, "cluster.bulk.actors=0", *SETTINGS, until="dual_0")
    assert process.wait(timeout=400) == 0, out.with_suffix(".log").read_text()[-3000:]
    lines = (out / "logs" / "dual_0.jsonl").read_text().splitlines()
    found = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert len(found) >= 50
    return found[:50]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_worker_two_workers_and_no_ray_give_one_curve(tmp_path: Path) -> None:
    none = losses(tmp_path / "none", ALONE[0])
    one = losses(tmp_path / "one", "cluster.train.workers=1")
    two = losses(tmp_path / "two", "cluster.train.workers=2")
    assert two == pytest.approx(one, rel=1e-4)
    assert none == pytest.approx(one, rel=1e-4)
