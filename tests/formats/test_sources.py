"""Finding a data set's files, and cutting them into blocks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketray.errors import UserError
from rocketray.formats import BadLine, Source, cut, open_dataset, records, sources

QRELS = "query-id\tcorpus-id\tscore\nq1\tp1\t1\n"


def folder(tmp_path: Path, **files: str) -> Path:
    """A folder of files; `__` in a name is a slash, `_gz` at its end packs it."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_bytes(text.encode())
    return tmp_path


def beir(tmp_path: Path, **more: str) -> Path:
    files = {
        "corpus.jsonl": '{"_id": "p1", "text": "one"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "one?"}\n',
        "qrels__train.tsv": QRELS,
    }
    return folder(tmp_path, **{**files, **more})


def test_a_collection_in_one_line_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a"}\n[' + " " * (3 << 20) + "]\n")
    monkeypatch.setattr(sources, "LONGEST", 2 << 20)
    with pytest.raises(UserError) as error:
        cut(Source(path, "jsonl"), 10, tmp_path)
    assert str(error.value) == (
        f"{path}, line 2: longer than 2 MiB. Write one row a line; longer texts are cut by the"
        " token limits anyway."
    )
    monkeypatch.setattr(sources, "LONGEST", 4 << 20)
    assert [found.rows for found in cut(Source(path, "jsonl"), 10, tmp_path)] == [2]


def test_beir(tmp_path: Path) -> None:
    found = open_dataset(beir(tmp_path, **{"qrels__dev.tsv.gz": QRELS}))
    assert found.layout == "beir"
    assert found.corpus == [Source(tmp_path / "corpus.jsonl", "jsonl")]
    assert found.queries == [Source(tmp_path / "queries.jsonl", "jsonl")]
    assert found.qrels == {
        "train": tmp_path / "qrels/train.tsv",
        "dev": tmp_path / "qrels/dev.tsv.gz",
    }
    assert found.unlabelled == []
    assert found.warnings == [f"{tmp_path}: no qrels/test.tsv, so nothing is measured on test."]


@pytest.mark.parametrize("name", ["validation.tsv", "test.txt", "dev.tsv.bz2"])
def test_judgements_that_nobody_would_read_are_refused(tmp_path: Path, name: str) -> None:
    """Else their questions pass for unlabelled. Hidden files are nobody's."""
    open_dataset(beir(tmp_path, **{"qrels__.DS_Store": "", "qrels__test.tsv.gz": QRELS}))
    (tmp_path / "qrels" / name).write_text(QRELS)
    with pytest.raises(UserError) as error:
        open_dataset(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'qrels' / name}: no such split.")
    assert "Rename it to train.tsv, dev.tsv or test.tsv" in str(error.value)


def test_plain_beats_gz(tmp_path: Path) -> None:
    found = open_dataset(beir(tmp_path, **{"corpus.jsonl.gz": ""}))
    assert found.corpus[0].path.name == "corpus.jsonl"


def test_beir_without_train(tmp_path: Path) -> None:
    beir(tmp_path, **{"qrels__test.tsv": QRELS})
    (tmp_path / "qrels/train.tsv").unlink()
    with pytest.raises(UserError) as error:
        open_dataset(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no training labels. Looked for qrels/train.tsv, also as .gz; found "
        "corpus.jsonl, qrels/, qrels/test.tsv, queries.jsonl."
    )
    assert list(open_dataset(tmp_path, train_required=False).qrels) == ["test"]


def test_beir_without_queries(tmp_path: Path) -> None:
    beir(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(UserError, match=r"corpus\.jsonl has no queries\.jsonl beside it; found"):
        open_dataset(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    with pytest.raises(UserError) as error:
        open_dataset(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no data set here. Looked for corpus.jsonl (BEIR) and collection.tsv or "
        "para.txt (MS MARCO), also as .gz; found train.csv."
    )


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_dataset(tmp_path / "x")
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="not a folder"):
        open_dataset(tmp_path / "x")


MARCO = {
    "collection.tsv": "p1\tone\n",
    "queries.train.tsv": "q1\tone?\n",
    "qrels.train.tsv": "q1\t0\tp1\t1\n",
}


def test_msmarco(tmp_path: Path) -> None:
    more = {
        "titles.tsv": "p1\tOne\n",
        "queries.dev.tsv": "",
        "queries.dev.small.tsv": "",
        "qrels.dev.small.tsv": "",
        "qrels.dev.tsv": "",
        "queries.eval.tsv": "q9\tsecret?\n",
    }
    found = open_dataset(folder(tmp_path, **MARCO, **more))
    assert found.layout == "msmarco"
    assert found.corpus == [
        Source(tmp_path / "collection.tsv", "tsv", titles=tmp_path / "titles.tsv")
    ]
    names = [source.path.name for source in found.queries]
    assert names == ["queries.train.tsv", "queries.dev.small.tsv"]
    assert {split: path.name for split, path in found.qrels.items()} == {
        "train": "qrels.train.tsv",
        "dev": "qrels.dev.small.tsv",
    }
    assert found.warnings == [
        f"{tmp_path}: no qrels.test.tsv, so nothing is measured on test; queries.eval.tsv is "
        "not used."
    ]


def test_msmarco_full_dev_takes_the_full_queries(tmp_path: Path) -> None:
    more = {"queries.dev.tsv": "", "queries.dev.small.tsv": "", "qrels.dev.tsv": ""}
    found = open_dataset(folder(tmp_path, **MARCO, **more))
    assert found.queries[1].path.name == "queries.dev.tsv"


def test_rocketqa_names(tmp_path: Path) -> None:
    files = {"para.txt": "", "para.title.txt": "", "train.query.txt": "", "qrels.train.tsv": ""}
    found = open_dataset(folder(tmp_path, **files))
    assert found.corpus == [
        Source(tmp_path / "para.txt", "tsv", titles=tmp_path / "para.title.txt")
    ]
    assert found.queries == [Source(tmp_path / "train.query.txt", "tsv")]


def test_one_queries_file_for_all_splits(tmp_path: Path) -> None:
    files = {"collection.tsv": "", "queries.tsv": "", "qrels.train.tsv": "", "qrels.dev.tsv": ""}
    assert len(open_dataset(folder(tmp_path, **files)).queries) == 1


def test_msmarco_labels_without_queries(tmp_path: Path) -> None:
    folder(tmp_path, **MARCO, **{"qrels.dev.tsv": ""})
    with pytest.raises(
        UserError, match=r"qrels\.dev\.tsv has no queries\. Looked for queries\.dev"
    ):
        open_dataset(tmp_path)
    (tmp_path / "qrels.train.tsv").unlink()
    with pytest.raises(UserError, match=r"Looked for qrels\.train\.tsv"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["u.jsonl", "u.tsv", "u.txt", "u.txt.gz"])
def test_unlabelled(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    [source] = open_dataset(beir(tmp_path), path).unlabelled
    assert source == Source(path, name.split(".")[1], ids_optional=True)


def test_unlabelled_mistakes(tmp_path: Path) -> None:
    beir(tmp_path)
    with pytest.raises(UserError, match="no such file of unlabelled questions"):
        open_dataset(tmp_path, tmp_path / "u.txt")
    (tmp_path / "u.csv").touch()
    with pytest.raises(UserError, match=r"u\.csv: unlabelled questions are \.jsonl"):
        open_dataset(tmp_path, tmp_path / "u.csv")


# ---------------------------------------------------------------------------------------- cutting


def test_blocks_of_two(tmp_path: Path) -> None:
    path = tmp_path / "u.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \ntwo\r\nthree\n\nfour\nfive")
    cuts = cut(Source(path, "txt"), 2, tmp_path)
    assert [(c.first_line, c.offset, c.length, c.rows) for c in cuts] == [
        (1, 0, 18, 2),
        (5, 18, 12, 2),
        (8, 30, 4, 1),
    ]
    assert [list(c.lines()) for c in cuts] == [
        [(1, b"one"), (4, b"two")],
        [(5, b"three"), (7, b"four")],
        [(8, b"five")],
    ]


def test_unicode_line_separators_are_text(tmp_path: Path) -> None:
    path = tmp_path / "u.txt"
    text = "one\u2028still one\u0085and\x0bstill\rso"
    path.write_text(text + "\ntwo\n", encoding="utf-8", newline="")
    [block] = cut(Source(path, "txt"), 9, tmp_path)
    assert [row["text"] for _, row in records(block)] == [text, "two"]  # type: ignore[index]


def test_gz_is_cut_alike(tmp_path: Path) -> None:
    text = "".join(f"question {n}\n" for n in range(10))
    folder(tmp_path, **{"u.txt": text, "u.txt.gz": text})
    plain, packed = (
        cut(Source(tmp_path / name, "txt", ids_optional=True), 4, tmp_path / "scratch")
        for name in ("u.txt", "u.txt.gz")
    )
    assert [list(records(c)) for c in plain] == [list(records(c)) for c in packed]
    assert {c.source for c in packed} == {tmp_path / "u.txt.gz"}
    assert len(list((tmp_path / "scratch").iterdir())) == 1


def test_damaged_gz(tmp_path: Path) -> None:
    path = tmp_path / "u.txt.gz"
    whole = gzip.compress(b"a question\n" * 1000)
    path.write_bytes(whole[:-12])
    with pytest.raises(UserError, match=r"u\.txt\.gz: the gzip file ends too early \(truncated\)"):
        cut(Source(path, "txt"), 2, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"u\.txt\.gz: not a readable gzip file"):
        cut(Source(path, "txt"), 2, tmp_path / "scratch")


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf\n"])
def test_file_without_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "u.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="the file holds no rows"):
        cut(Source(path, "txt"), 2, tmp_path)


LINES = st.lists(st.sampled_from([b"a", b" b ", b"", b"  ", b"\t", b"c" * 40, b"\xc3\xa9"]))


@given(
    lines=LINES,
    ends=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    mark=st.booleans(),
    size=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_rows_are_the_non_blank_lines(
    tmp_path: Path, lines: list[bytes], ends: bytes, last: bool, mark: bool, size: int
) -> None:
    path = tmp_path / "u.txt"
    path.write_bytes(b"\xef\xbb\xbf" * mark + ends.join(lines) + ends * last)
    expected = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not expected:
        return
    cuts = cut(Source(path, "txt"), size, tmp_path)
    assert [row for block in cuts for row in block.lines()] == expected
    assert [block.rows for block in cuts[:-1]] == [size] * (len(cuts) - 1)
    assert sum(block.rows for block in cuts) == len(expected)


# ---------------------------------------------------------------------------------------- records


def test_ids_are_made_from_file_and_line(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "", '{"_id": "own", "text": "b"}', '{"_id": null, "text": "c"}']
    folder(tmp_path, **{"more.jsonl.gz": "\n".join(lines)})
    [block] = cut(Source(tmp_path / "more.jsonl.gz", "jsonl", ids_optional=True), 9, tmp_path)
    assert [row["id"] for _, row in records(block)] == [  # type: ignore[index]
        "more.jsonl:1",
        "own",
        "more.jsonl:4",
    ]


@pytest.mark.parametrize("name", ["id", "docid", "doc_id", "pid", "qid"])
def test_an_id_under_another_name_is_not_replaced(tmp_path: Path, name: str) -> None:
    """Where rows may be without one. Beside an `_id` such a field says something else."""
    lines = [json.dumps({name: "7", "text": "a"}), json.dumps({name: "7", "_id": "1", "text": "b"})]
    folder(tmp_path, **{"more.jsonl": "\n".join(lines)})
    [block] = cut(Source(tmp_path / "more.jsonl", "jsonl", ids_optional=True), 9, tmp_path)
    (_, first), (_, second) = records(block)
    assert str(first) == f"`{name}` is not read, and `_id` is missing: call it `_id`."
    assert second["id"] == "1"  # type: ignore[index]


@pytest.mark.parametrize("first", ["pid\ttext", "_id\tPassage", "QID\tquestion"])
def test_column_names_are_no_row(tmp_path: Path, first: str) -> None:
    """In the first line; further down they are ids and texts like others."""
    folder(tmp_path, **{"collection.tsv": f"{first}\n1\ttext\nid\tquery\n"})
    [block] = cut(Source(tmp_path / "collection.tsv", "tsv"), 9, tmp_path)
    (_, names), *rows = records(block)
    assert str(names).startswith(f"a line of column names ({', '.join(first.split())}), and")
    assert [row for _, row in rows] == [{"id": "1", "text": "text"}, {"id": "id", "text": "query"}]


def test_titles_join_by_id_in_any_order(tmp_path: Path) -> None:
    folder(tmp_path, **{"collection.tsv": "1\tone\n2\ttwo\nbad\n3\tthree\n"})
    (tmp_path / "titles.tsv").write_bytes(b"\xef\xbb\xbf3\tThree\r\n9\tNine\n\n1\tOne, \xc3\xa9\n")
    source = Source(tmp_path / "collection.tsv", "tsv", titles=tmp_path / "titles.tsv")
    found = [row for c in cut(source, 2, tmp_path / "s") for _, row in records(c)]
    assert [row for row in found if isinstance(row, dict)] == [
        {"id": "1", "text": "one", "title": "One, \u00e9"},
        {"id": "2", "text": "two", "title": ""},
        {"id": "3", "text": "three", "title": "Three"},
    ]
    assert str(found[2]) == "1 columns parted by tabs; expected 2: id and text."
    assert isinstance(found[2], BadLine)


def test_a_title_that_is_no_utf8_is_a_bad_line(tmp_path: Path) -> None:
    folder(tmp_path, **{"collection.tsv": "1\tone\n2\ttwo\n"})
    (tmp_path / "titles.tsv").write_bytes(b"1\t\xe9\n2\tTwo\n")
    source = Source(tmp_path / "collection.tsv", "tsv", titles=tmp_path / "titles.tsv")
    [block] = cut(source, 9, tmp_path / "s")
    assert list(block.titled()) == [b"\xe9", b"Two"]
    first, second = (row for _, row in records(block))
    assert isinstance(first, BadLine)
    assert f"its title in {tmp_path / 'titles.tsv'}: byte 1 of the line (0xe9)" in str(first)
    assert second == {"id": "2", "text": "two", "title": "Two"}


def test_answers_stand_in_several_places(tmp_path: Path) -> None:
    rows = [
        {"answers": ["a"], "metadata": {"answers": ["b"]}},
        {"metadata": {"answers": ["b"]}},
        {"metadata": {"answer": "c"}},
        {"metadata": None},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [block] = cut(Source(tmp_path / "q.jsonl", "jsonl"), 9, tmp_path)
    found = [row["answers"] for _, row in records(block)]  # type: ignore[index]
    assert found == [["a"], ["b"], "c", []]
