"""What verbs write for other tools: ids and texts of the rows that a run names, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rocketray import storage
from rocketray.artifacts import Draft, Version, commit_block
from rocketray.errors import UserError
from rocketray.schema import PASSAGES
from rocketray.verbs.plain import Names, write_embeddings, write_ids, write_trec
from tests.s3 import Node
from tests.versions import questions, run, table, version


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Version, Version, Version]:
    """Two questions, six passages in blocks of three, a run in two blocks."""
    rows = [(f"p{n}", "T" * (n % 2), f"text {n}") for n in range(6)]
    passages = version(tmp_path / "p", table(PASSAGES, *rows[:3]), table(PASSAGES, *rows[3:]))
    queries = version(tmp_path / "q", questions("who", "why", "how"))
    found = version(tmp_path / "r", run((0, [5, 1])), run((2, [1])))
    return Version.open(queries), Version.open(passages), Version.open(found)


def test_ids_and_texts_by_row(tables: tuple[Version, Version, Version]) -> None:
    names = Names(*tables, texts=True)
    assert [names.qid(0), names.qid(2)] == ["q0", "q2"]
    assert names.question(2) == "how"
    assert names.pids([1, 5, 1]) == ["p1", "p5", "p1"]
    assert names.text(5) == "T text 5"
    assert names.says_something(1)


def test_only_named_rows_are_held(tables: tuple[Version, Version, Version]) -> None:
    names = Names(*tables, also=[4, 1])
    assert names.passages.rows.tolist() == [1, 4, 5]
    assert names.passages.table.column_names == ["pid"]
    assert names.queries.rows.tolist() == [0, 2]
    assert names.pids([4]) == ["p4"]


def test_files_are_sent_where_the_folder_is_on_object_storage(
    tables: tuple[Version, Version, Version], on: Node
) -> None:
    _, passages, found = tables
    folder = on("a")
    write_trec(folder / "runs" / "x.trec", found, Names(*tables))
    write_ids(folder / "index" / "x.txt", passages)
    run = storage.read(on("b") / "runs" / "x.trec") or b""
    assert [line.split()[:4] for line in run.splitlines()] == [
        [b"q0", b"Q0", b"p5", b"1"], [b"q0", b"Q0", b"p1", b"2"], [b"q2", b"Q0", b"p1", b"1"],
    ]  # fmt: skip
    assert storage.read(on("b") / "index" / "x.txt") == b"p0\np1\np2\np3\np4\np5\n"
    assert storage.files(on("b")) == [on("b") / "index" / "x.txt", on("b") / "runs" / "x.trec"]


def test_an_empty_run(tables: tuple[Version, Version, Version], tmp_path: Path) -> None:
    queries, passages, _ = tables
    names = Names(queries, passages, Version.open(version(tmp_path / "none", run())), texts=True)
    assert names.pids([]) == []


def test_an_error_is_about_the_file_that_it_names(tmp_path: Path) -> None:
    commit_block(tmp_path / "e", 0, {"embeddings": np.ones((2, 3))}, rows=2, key="", facts={})
    commit_block(tmp_path / "e", 1, {"embeddings": np.ones((2, 3))}, rows=2, key="", facts={})
    embeddings = Draft(tmp_path / "e", "e", {}).finish({})
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "folder" / "e.npy"
    with pytest.raises(UserError, match=rf"^{below} cannot be written: Not a directory\.$"):
        write_embeddings(below, embeddings)
    gone = embeddings.blocks[1].files["embeddings"]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        write_embeddings(tmp_path / "e.npy", embeddings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "file"]


def test_embeddings_of_more_blocks_than_open_files(tmp_path: Path, few_files: None) -> None:
    e_PD = np.arange(180, dtype=np.float16).reshape(60, 3)
    for number, rows in enumerate(np.split(e_PD, [2, *range(5, 60)])):
        parts = {"embeddings": rows}
        commit_block(tmp_path / "e", number, parts, rows=len(rows), key="", facts={})
    write_embeddings(tmp_path / "e.npy", Draft(tmp_path / "e", "e", {}).finish({}))
    found = np.load(tmp_path / "e.npy")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, e_PD)
