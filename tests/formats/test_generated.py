"""Made-up data: learnable, repeatable, and with the texts that break careless code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rocketray.formats import open_dataset
from rocketray.formats.generated import VERY_LONG, words, write_generated


def rows(path: Path) -> dict[str, dict[str, str]]:
    return {row["_id"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_sizes_and_splits(tmp_path: Path) -> None:
    counts = write_generated(tmp_path, passages=50, queries=40, unlabelled=10, seed=1)
    assert counts == {"passages": 50, "train": 40, "dev": 10, "test": 10, "unlabelled": 10}
    found = open_dataset(tmp_path)
    assert sorted(found.qrels) == ["dev", "test", "train"]
    assert found.warnings == []
    assert len(rows(tmp_path / "corpus.jsonl")) == 50
    assert len(rows(tmp_path / "queries.jsonl")) == 70


def test_a_question_repeats_words_of_its_passage(tmp_path: Path) -> None:
    write_generated(tmp_path, passages=50, queries=40)
    corpus, queries = rows(tmp_path / "corpus.jsonl"), rows(tmp_path / "queries.jsonl")
    for line in (tmp_path / "qrels/train.tsv").read_text().splitlines()[1:]:
        qid, pid, _ = line.split("\t")
        asked = set(queries[qid]["text"].rstrip("?").split())
        assert len(asked & set(corpus[pid]["text"].rstrip(".").split())) >= 2
        assert asked <= set(words())


def test_special_passages(tmp_path: Path) -> None:
    write_generated(tmp_path)
    corpus = rows(tmp_path / "corpus.jsonl")
    assert corpus["empty"]["text"] == ""
    assert len(corpus["very_long"]["text"]) == VERY_LONG
    assert corpus["chinese"]["text"].startswith("\u5411")
    assert corpus["emoji"]["text"].startswith("\U0001f680")


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_generated(tmp_path / name, passages=20, queries=8, seed=seed)
    a, b, c = (
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))] for name in "abc"
    )
    assert a == b != c


def test_words_are_distinct() -> None:
    assert len(words()) == len(set(words())) == 4_900


def test_too_few_passages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="passages=7: at least 8"):
        write_generated(tmp_path, passages=7)
