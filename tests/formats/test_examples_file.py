"""People's own training examples, under all the names they come with."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rocketray.errors import UserError
from rocketray.formats import open_dataset
from rocketray.formats.examples_file import OwnExample, Text, open_examples, write_examples

EXAMPLE = OwnExample(1, "q", Text("", "yes"), [Text("T", "no"), Text("", "never")])
NEGATIVES = [{"title": "T", "text": "no"}, "never"]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "positive": "yes", "negatives": NEGATIVES},
        {"query": "q", "positive": {"text": "yes"}, "negatives": NEGATIVES},
        {"query": "q", "pos": ["yes"], "neg": NEGATIVES},
        {
            "query_id": "1",
            "query": "q",
            "positive_passages": [{"docid": "2", "title": "", "text": "yes"}],
            "negative_passages": [{"docid": "3", "title": "T", "text": "no"}, {"text": "never"}],
        },
    ],
)
def test_names(tmp_path: Path, row: dict[str, Any]) -> None:
    assert list(open_examples(jsonl(tmp_path / "x.jsonl", row))) == [EXAMPLE]


def test_triplets_as_sentence_transformers_has_them(tmp_path: Path) -> None:
    row = {"query": "q", "positive": "yes", "negative": "no"}
    found = list(open_examples(jsonl(tmp_path / "x.jsonl", row)))
    assert found == [OwnExample(1, "q", Text("", "yes"), [Text("", "no")])]


def test_several_positives(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", {"query": "q", "pos": ["a", "b"]})
    assert list(open_examples(path)) == [
        OwnExample(1, "q", Text("", "a"), []),
        OwnExample(1, "q", Text("", "b"), []),
    ]


def test_triples(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv.gz"
    path.write_bytes(gzip.compress(b"q\tyes\tno\r\n\nq2\tyes2\tno2\n"))
    assert list(open_examples(path)) == [
        OwnExample(1, "q", Text("", "yes"), [Text("", "no")]),
        OwnExample(3, "q2", Text("", "yes2"), [Text("", "no2")]),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"positive": "p"}, "`query` is missing: "),
        ({"query": 3, "positive": "p"}, "`query` must be a string, not 3."),
        ({"query": " ", "positive": "p"}, "`query` is empty."),
        ({"query": "q"}, "no positive: the line needs one of positive, pos, positive_passages"),
        ({"query": "q", "pos": []}, "no positive"),
        ({"query": "q", "pos": ["p"], "positive": "p"}, "`positive` and `pos` both stand here"),
        ({"query": "q", "pos": ["p", 5]}, "`pos[1]` must be a string, not 5."),
        ({"query": "q", "positive": {"title": "t"}}, "`positive.text` is missing."),
        ({"query": "q", "positive": {"title": 1, "text": "t"}}, "`positive.title` must be a"),
        ({"query": "q", "positive": "p", "negatives": [""]}, "`negatives[0]` is empty."),
        ({"query": "q", "positive": "p", "negative_1": "n"}, "`negative_1` is not read: put"),
        ({"query": "q", "positive": "p", "hard_negatives": ["n"]}, "`hard_negatives` is not read"),
        ({"query": "q", "positive": "p", "Negatives": ["n"]}, "`Negatives` is not read: put"),
        (
            {"anchor": "q", "positive": "p"},
            "`query` is missing: a line needs it and one of positive,"
            " pos, positive_passages; this one has anchor, positive.",
        ),
        ({"query": "q\0", "positive": "p"}, "`query` holds a NUL character"),
        ([1], "a JSON array where an object must be."),
    ],
)
def test_bad_fields(tmp_path: Path, row: Any, message: str) -> None:
    path = jsonl(tmp_path / "x.jsonl", {"query": "q", "positive": "p"}, row)
    with pytest.raises(UserError) as error:
        list(open_examples(path))
    assert str(error.value).startswith(f"{path}, line 2: {message}")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv: training examples are \.jsonl or \.tsv"):
        list(open_examples(tmp_path / "x.csv"))
    with pytest.raises(UserError, match=r"x\.tsv: no such file of training examples"):
        list(open_examples(tmp_path / "x.tsv"))
    (tmp_path / "x.tsv").write_text("q\tp\n")
    with pytest.raises(UserError, match=r"line 1: 2 columns parted by tabs; expected query, pos"):
        list(open_examples(tmp_path / "x.tsv"))
    (tmp_path / "x.tsv").write_text("query\tpositive\tnegative\nq\tp\tn\n")
    with pytest.raises(UserError, match=r"line 1: a line of column names \(query, positive, neg"):
        list(open_examples(tmp_path / "x.tsv"))
    (tmp_path / "x.jsonl").write_bytes(b'{"query": "\xff"}\n')
    with pytest.raises(UserError, match=r"line 1: byte 12 of the line \(0xff\) is not valid UTF-8"):
        list(open_examples(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_bytes(b"\n")
    with pytest.raises(UserError, match="holds no training examples"):
        write_examples(tmp_path / "x.jsonl", tmp_path / "out")


def test_as_a_data_set(tmp_path: Path) -> None:
    """The same text is one row, wherever it stands; a surrogate does no harm."""
    path = jsonl(
        tmp_path / "x.jsonl",
        {"query": "q", "pos": ["a", "b"], "neg": ["c\ud800"]},
        {"query": "q", "pos": ["a"], "neg": ["b"]},
    )
    assert write_examples(path, tmp_path / "out") == 3
    found = open_dataset(tmp_path / "out")
    rows = [json.loads(line) for line in found.corpus[0].path.read_text().splitlines()]
    key = {row["text"]: row["_id"] for row in rows}
    assert list(key) == ["a", "c?", "b"]
    assert len(found.queries[0].path.read_text().splitlines()) == 1
    assert len(found.qrels["train"].read_text().splitlines()) == 1 + 2
    examples = (tmp_path / "out/examples.jsonl").read_text().splitlines()
    last = json.loads(examples[2])
    assert (last["line"], last["positive"], last["negatives"]) == (2, key["a"], [key["b"]])
