"""Training on one's own examples: the tables they become, and whole small trainings."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rocketray import cli, loop, own_examples
from rocketray.artifacts import RunFolder
from rocketray.errors import UserError
from rocketray.formats.generated import words
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.own_examples import Line, read, split, table_of
from rocketray.progress import Display
from rocketray.schema import EXAMPLES, PASSAGES, QRELS, QUERIES
from rocketray.tables import Tables
from tests.runs import ALONE

FEW: list[dict[str, Any]] = [
    {"query": "a", "positive": "A", "negatives": ["X", "Y", "X", "B"]},
    {"query": "b", "positive": {"title": "T", "text": "A"}, "negatives": ["X", "A"]},
    {"query": "a", "pos": ["B", "A"], "neg": ["Y", "Z"]},
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def many(path: Path, negatives: int = 2, count: int = 60) -> Path:
    """One example a question, over words that the tiny model knows."""
    vocabulary = words()
    rows = [
        {
            "query": vocabulary[n],
            "positive": f"{vocabulary[n]} {vocabulary[n + 500]}",
            "negatives": [f"{vocabulary[n + k]} {vocabulary[n + 900]}" for k in (1, 2)][:negatives],
        }
        for n in range(count)
    ]
    return jsonl(path, rows)


def train(kind: str, examples: Path, out: Path, *settings: str) -> str:
    """What it prints."""
    display = Display(Console(file=io.StringIO(), width=200))
    overrides = [*ALONE, "steps.dual_0.epochs=1", "steps.cross.epochs=1", *settings]
    loop.train(kind, examples, out, recipe="tiny", overrides=overrides, display=display)
    assert isinstance(display.console.file, io.StringIO)
    return display.console.file.getvalue()


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained dual encoder. Read only."""
    folder = tmp_path_factory.mktemp("dual")
    train("dual", many(folder / "x.jsonl"), folder / "out")
    return folder


# ---- reading


def test_every_text_is_one_row(tmp_path: Path) -> None:
    own = read(jsonl(tmp_path / "x.jsonl", FEW))
    assert own.passages.schema == PASSAGES
    assert own.passages["pid"].to_pylist() == [f"p{row}" for row in range(6)]
    pairs = zip(own.passages["title"].to_pylist(), own.passages["text"].to_pylist(), strict=True)
    assert list(pairs) == [("", "A"), ("", "X"), ("", "Y"), ("", "B"), ("T", "A"), ("", "Z")]
    assert own.queries.schema == QUERIES
    assert own.queries["text"].to_pylist() == ["a", "b"]
    assert own.queries["labelled"].to_pylist() == [True, True]
    assert own.qrels.schema == QRELS
    assert own.qrels["query"].to_pylist() == [0, 1, 0]
    assert own.qrels["passage"].to_pylist() == [0, 4, 3]


def test_negatives_are_no_positives_of_the_query(tmp_path: Path) -> None:
    """B (3) is a negative of `a` on line 1 and a positive on line 3: the positive counts."""
    assert read(jsonl(tmp_path / "x.jsonl", FEW)).lines == [
        Line(1, 0, 0, [1, 2]),
        Line(2, 1, 4, [1, 0]),
        Line(3, 0, 3, [2, 5]),
        Line(3, 0, 0, [2, 5]),
    ]


def test_examples_table(tmp_path: Path) -> None:
    table = table_of(read(jsonl(tmp_path / "x.jsonl", FEW)).lines, 1)
    assert table.schema == EXAMPLES
    assert table["negatives"].to_pylist() == [[1], [1], [2], [2]]
    assert table["copy"].to_pylist() == [0, 0, 0, 1]  # The pair a, A comes again on line 3.
    assert np.isnan(table["ce_positive"].to_numpy()).all()


def test_a_tenth_is_held_out_by_text(tmp_path: Path) -> None:
    own = read(many(tmp_path / "x.jsonl"))
    train_qrels, dev_qrels = split(own, seed=7)
    assert (len(train_qrels), len(dev_qrels)) == (54, 6)
    texts = own.queries["text"].to_pylist()
    chosen = {texts[query] for query in dev_qrels["query"].to_pylist()}
    shuffled = (tmp_path / "x.jsonl").read_text().splitlines(keepends=True)[::-1]
    (tmp_path / "y.jsonl").write_text("".join(shuffled))
    again = read(tmp_path / "y.jsonl")
    _, dev_again = split(again, seed=7)
    texts = again.queries["text"].to_pylist()
    assert {texts[query] for query in dev_again["query"].to_pylist()} == chosen


def test_few_questions_are_all_for_training(tmp_path: Path) -> None:
    own = read(many(tmp_path / "x.jsonl", count=49))
    assert [len(part) for part in split(own, seed=7)] == [49, 0]


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training examples"):
        read(jsonl(tmp_path / "x.jsonl", []))


# ---- training


def test_dual(dual: Path) -> None:
    out = dual / "out"
    assert DualEncoder.open(out / "models/dual").query_length == 16
    lines = [json.loads(line) for line in (out / "logs/dual.jsonl").read_text().splitlines()]
    assert any("dev_mrr@10" in line for line in lines)
    folder = RunFolder.open(out)
    assert folder.version("dual").facts["rows"] == 54
    negatives = folder.version("own_examples").read()["negatives"].to_pylist()
    assert {len(row) for row in negatives} == {1}


def test_the_same_command_again_makes_nothing(dual: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(dual / "out", tmp_path / "out"))
    before = RunFolder.open(out).current()
    printed = train("dual", dual / "x.jsonl", out)
    assert RunFolder.open(out).current() == before
    assert len(re.findall("finished before, skipped", printed)) == len(before)


def test_changed_examples_train_again(dual: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(dual / "out", tmp_path / "out"))
    printed = train("dual", many(tmp_path / "x.jsonl", negatives=0), out)
    assert "negatives per example: 0, the first of each list (line" in printed
    assert re.search("own_examples +again, because content", printed)
    assert re.search(r"dual +again, because .*inputs\.examples", printed)


def test_questions_held_out_before_are_forgotten(dual: Path, tmp_path: Path) -> None:
    """Of few questions none is held out, and those of before would name rows of other tables."""
    out = Path(shutil.copytree(dual / "out", tmp_path / "out"))
    assert {"qrels_dev", "dev_queries"} <= RunFolder.open(out).current().keys()
    train("dual", many(tmp_path / "x.jsonl", count=49), out)
    current = RunFolder.open(out).current()
    assert "qrels_train" in current
    assert current.keys().isdisjoint({"qrels_dev", "dev_queries"})


def test_cross_beside_dual(dual: Path, tmp_path: Path) -> None:
    """Both kinds in one folder share their tables; dev tells a question's own passages apart."""
    out = Path(shutil.copytree(dual / "out", tmp_path / "out"))
    printed = train("cross", dual / "x.jsonl", out)
    assert "54 examples of 54 questions; 6 more questions choose the checkpoint (dev)" in printed
    assert re.search(r"negatives per example: 2, the first of each list \(line \d+ has", printed)
    assert re.search("passages +finished before, skipped", printed)
    assert CrossEncoder.open(out / "models/cross").length == 48
    facts = RunFolder.open(out).version("cross").facts
    assert facts["rows"] == 54 * 3
    assert 1 / 3 <= facts["dev_mrr"] <= 1
    assert (out / "models/dual/rocketray.json").is_file()


# ---- what is refused


def test_a_cross_encoder_needs_negatives(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl: a cross-encoder learns from negatives"):
        train("cross", many(tmp_path / "x.jsonl", negatives=0, count=4), tmp_path / "out")


def test_a_folder_of_the_whole_loop(tmp_path: Path, tiny_run: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "out"))
    recipe = (out / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="holds a run of the whole loop"):
        train("dual", many(tmp_path / "x.jsonl"), out)
    assert (out / "recipe.yaml").read_text() == recipe


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("triple", '{"query": "q", "positive": "p"}', "There is no 'triple' to train"),
        ("dual", '{"query": "q"}', "x.jsonl, line 1: no positive"),
    ],
)
def test_nothing_is_written_for_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, line: str, message: str
) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    arguments = ["--examples", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", kind, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dev_without_negatives_is_no_dev_for_a_cross_encoder(dual: Path, tmp_path: Path) -> None:
    """Candidates that are all positives would give MRR 1 to any model."""
    own = read(many(tmp_path / "x.jsonl", negatives=0))
    folder = RunFolder.open(dual / "out")
    names = ("passages", "queries", "qrels_train", "qrels_dev", "dev_queries")
    passages, queries, qrels, dev, chosen = map(folder.version, names)
    tables = Tables(passages, queries, {"train": qrels, "dev": dev}, {"dev": chosen})
    assert own_examples._candidates(own, tables) is None
