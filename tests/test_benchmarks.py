"""benchmarks/: each runs by one command and writes what it measured; no test judges a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rocketray.formats.generated import write_generated

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.timeout(600)  # Minutes on a quiet machine, and CI is not one.
FIELDS = {"name", "value", "unit", "peer", "ratio", "low", "high", "target", "better"}


def measured(script: str, out: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(BENCHMARKS / script), "--json", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(out.read_text())
    assert all(line.keys() == FIELDS for line in found)
    assert all(line["better"] in ("higher", "lower") for line in found)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Made-up texts; test_mining reads those of the installed packages."""
    folder = tmp_path_factory.mktemp("data") / "made-up"
    write_generated(folder, passages=200, queries=120)
    return str(folder)


def test_loss(tmp_path: Path) -> None:
    small = ("--queries", "64", "--passages", "256", "--size", "32", "--chunk", "16")
    found = {line["name"]: line for line in measured("loss.py", tmp_path / "loss.json", *small)}
    assert found["gradient difference, float64"]["value"] < 1e-12
    # What two workers send is a fact and no timing: the formula's bytes, and a few for headers.
    assert 1 <= found["bytes a worker sends per step"]["ratio"] < 1.2


@pytest.mark.slow
def test_retrieval(tmp_path: Path) -> None:
    """Who is faster is nobody's business here; that all find the same passages is."""
    small = ("--only", "exact,stream,device", "--queries", "20", "--passages", "3000",
             "--size", "64", "--k", "10", "--rounds", "1")  # fmt: skip
    found = measured("retrieval.py", tmp_path / "r.json", *small)
    shares = [line["value"] for line in found if line["name"].startswith("passages also found")]
    assert len(shares) >= 3
    assert min(shares) > 0.99
    assert next(line for line in found if line["name"] == "same passages from a file")["value"] == 1


@pytest.mark.slow
def test_training_gpu(tmp_path: Path) -> None:
    """The command for a GPU, on the CPU: everything but the kernels."""
    small = ("--device", "cpu", "--shape", "tiny", "--batch", "16", "--sizes", "8", "--rounds", "1")
    names = [line["name"] for line in measured("training_gpu.py", tmp_path / "t.json", *small)]
    assert names[1:3] == ["model FLOP utilisation", "memory"]


@pytest.mark.slow
def test_training(data: str, tmp_path: Path) -> None:
    small = ("--data", data, "--only", "cache,two", "--layers", "1", "--batch", "16",
             "--rounds", "1", "--passage-length", "32", "--threads", "1")  # fmt: skip
    names = [line["name"] for line in measured("training.py", tmp_path / "t.json", *small)]
    assert names == [
        "GradCache, dropout 0.0",
        "GradCache, dropout 0.1",
        "cached step, two processes",
    ]


@pytest.mark.slow
def test_scale(tmp_path: Path) -> None:
    found = {line["name"]: line["value"] for line in measured(
        "scale.py", tmp_path / "s.json", "--sizes", "1000,2000", "--actors", "1"
    )}  # fmt: skip
    for stage in ("ingest", "tokenise", "encode", "retrieve", "score"):
        assert found[f"1,000: {stage}"] > 0
        assert found[f"2,000: {stage}, worker"] > 0
        assert f"{stage}: exponent of time" in found


@pytest.mark.slow
def test_bulk_gpu(tmp_path: Path) -> None:
    """The command for a GPU, on the CPU: everything but the kernels."""
    small = ("--encoder", "tiny", "--cross", "tiny", "--rows", "24", "--sizes", "8",
             "--rounds", "1")  # fmt: skip
    found = {line["name"]: line for line in measured("bulk_gpu.py", tmp_path / "b.json", *small)}
    assert found["encode, tiny, float32, 1 - cosine"]["value"] < 1e-6
    assert found["score, tiny, float32, difference"]["value"] < 1e-5


@pytest.mark.slow
def test_bulk(data: str, tmp_path: Path) -> None:
    small = ("--data", data, "--only", "encode,score,int8,actors", "--layers", "1", "--rows", "16",
             "--sizes", "16", "--rounds", "1", "--passage-length", "32", "--threads", "1",
             "--questions", "8", "--corpus", "16", "--blocks", "4")  # fmt: skip
    lines = measured("bulk.py", tmp_path / "b.json", *small)
    found = {line["name"].removeprefix("made-up: "): line for line in lines}
    assert list(found) == [
        *(f"encode, {pooling}, 1 thread{what}" for pooling in ("mean", "cls")
          for what in ("", ", share of the limit", ", 1 - cosine")),
        *(f"score, 1 thread{what}" for what in ("", ", share of the limit", ", difference")),
        "encode in int8", "a product in int8", "nDCG@10 in int8",
        *(f"{stage}, {pool}" for stage in ("encode", "score")
          for pool in ("two workers of a thread each", "Ray Data, two actors")),
    ]  # fmt: skip
    # What is no time: the same texts give the same numbers on both sides.
    assert all(line["value"] < 1e-6 for name, line in found.items() if "cosine" in name)
    assert found["score, 1 thread, difference"]["value"] < 1e-5


@pytest.mark.slow
def test_mining(tmp_path: Path) -> None:
    small = ("--only", "mining", "--layers", "1", "--rows", "16", "--passage-length", "32",
             "--questions", "8", "--corpus", "60", "--rounds", "1")  # fmt: skip
    lines = measured("bulk.py", tmp_path / "b.json", *small)
    found = {line["name"].removeprefix("packages: "): line for line in lines}
    assert found["pairs scored for it"]["value"] == 0


@pytest.mark.slow
def test_quality(tmp_path: Path) -> None:
    """Both sides, to the end: ours by the whole recipe, theirs by its trainers and its miner."""
    told = ("model.dual.towers=one", "model.dual.similarity=cosine", "model.dual.temperature=0.05",
            "cluster.bulk.actors=0", "cluster.train.workers=0", "cluster.train.threads=1",
            *(f"steps.{step}.{few}=1" for step in ("dual_0", "dual_1", "dual_2")
              for few in ("epochs", "evaluations")))  # fmt: skip
    small = [argument for setting in told for argument in ("--set", setting)]
    found = measured(
        "quality.py",
        tmp_path / "q.json",
        "--out",
        str(tmp_path / "out"),
        "--recipe",
        "tiny",
        *small,
    )
    assert found[0]["name"] == "mrr@10 of the dual encoder"
    assert 0 < found[0]["value"] <= 1
    assert 0 < found[1]["value"] <= 1
    lines = {line["name"]: line for line in found}
    # A fair comparison, and no broken opponent: as much training, of use to both.
    assert lines["steps of the dual encoder's training"]["ratio"] == 1
    assert lines["questions of the dual encoder's training"]["ratio"] == 1
    assert lines["mrr@10 over the untrained weights, ours"]["value"] > 0
    assert lines["mrr@10 over the untrained weights, theirs"]["value"] > 0
    made = {path.parent.name for path in tmp_path.glob("out/seed-0/theirs-*/*/model.safetensors")}
    assert made == {"base", "cross", "no-hard-negatives", "relative-margin-0.05", "at-most-0.5"}
