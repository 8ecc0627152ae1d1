"""Blocks, receipts, manifests, fingerprints, and one writer per run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rocketray import artifacts
from rocketray.artifacts import (
    Draft,
    RunFolder,
    Superseded,
    Version,
    Writer,
    changes,
    commit_block,
    file_sha256,
    fingerprint,
    mapped_array,
    read_table,
)
from rocketray.errors import UserError


def numbers(*values: int) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


def commit(folder: Path, number: int, *values: int, key: str = "") -> dict[str, Any]:
    return commit_block(
        folder, number, {"table": numbers(*values)}, rows=len(values), key=key, facts={}
    )


def draft(folder: Path, name: str = "stage") -> Draft:
    return Draft(folder / name, name.partition("-")[0], {"name": name})


def damage(path: Path) -> None:
    """One bit of a file, in place: under all its names."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files(folder: Path) -> list[str]:
    found = folder.rglob("*")
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


# ----------------------------------------------------------------------------------------- blocks


def test_a_version_reads_back(tmp_path: Path) -> None:
    made = draft(tmp_path)
    commit(made.path, 0, 1, 2)
    commit(made.path, 1, 3)
    version = made.finish({"count": 3}, blocks=2)
    assert [(b.number, b.first_row, b.rows) for b in version.blocks] == [(0, 0, 2), (1, 2, 1)]
    assert version.rows == 3
    assert version.read()["n"].to_pylist() == [1, 2, 3]
    assert version.table(1)["n"].to_pylist() == [3]
    assert version.facts == {"count": 3}
    assert (version.name, version.manifest["fingerprint"]) == ("stage", fingerprint(made.identity))


def test_what_killed_workers_left_half_written_is_removed(tmp_path: Path) -> None:
    made = draft(tmp_path)
    commit(made.path, 0, 1, 2)
    (made.path / "blocks" / ".00000.parquet.0123abcd.tmp").write_bytes(b"half")
    for folder in ("checkpoints/.step-00000003.0123abcd.tmp", ".model.0123abcd.tmp"):
        (made.path / folder).mkdir(parents=True)
        (made.path / folder / "model.safetensors").write_bytes(b"half")
    made.finish({}, blocks=1)
    assert files(made.path) == ["blocks/00000.parquet", "manifest.json", "receipts/00000.json"]


def test_arrays_come_back_memory_mapped(tmp_path: Path) -> None:
    made, array = draft(tmp_path), np.arange(6, dtype=np.float32).reshape(3, 2)
    commit_block(made.path, 0, {"a": array, "b": array.T}, rows=3, key="", facts={})
    version = made.finish({})
    assert isinstance(version.array(0, "a"), np.memmap)
    np.testing.assert_array_equal(version.array(0, "a"), array)
    np.testing.assert_array_equal(version.array(0, "b"), array.T)
    assert version.array(0, "b").flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.uint16), np.zeros(0, np.int64), np.arange(6, dtype="i4").reshape(2, 3)],
    ids=["1d", "empty", "2d"],
)
def test_a_mapped_array_keeps_no_file_open(tmp_path: Path, array: np.ndarray) -> None:
    made = draft(tmp_path)
    commit_block(made.path, 0, {"a": array}, rows=1, key="", facts={})
    path = made.finish({}).blocks[0].files["a"]
    before = len(os.listdir("/dev/fd"))
    found = mapped_array(path)
    assert len(os.listdir("/dev/fd")) == before
    path.unlink()
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tolist() == array.tolist()
    assert not found.flags.writeable


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        commit_block(tmp_path, 0, {"a": np.array([{}])}, rows=1, key="", facts={})
    assert draft(tmp_path.parent, tmp_path.name).receipts() == {}


def test_a_block_leaves_its_files_and_a_receipt_and_nothing_else(tmp_path: Path) -> None:
    receipt = commit(tmp_path, 7, 1)
    assert files(tmp_path) == ["blocks/00007.parquet", "receipts/00007.json"]
    assert json.loads((tmp_path / "receipts/00007.json").read_text()) == receipt
    found = file_sha256(tmp_path / "blocks/00007.parquet")
    assert receipt["sha256"] == {"blocks/00007.parquet": found}


def test_the_same_block_has_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        commit(tmp_path / name, 0, 1, 2, 3)
    a, b = ([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))] for name in "ab")
    assert a == b


def test_a_block_killed_before_its_receipt_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, receipt: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "write_receipt", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(tmp_path / "stage", 0, 1)
    assert files(tmp_path) == ["stage/blocks/00000.parquet"]
    assert draft(tmp_path).receipts() == {}


def test_a_block_killed_while_writing_is_invisible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(temporary: Path, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(tmp_path / "stage", 0, 1)
    (left,) = (tmp_path / "stage" / "blocks").iterdir()
    assert left.suffix == ".tmp"
    assert draft(tmp_path).receipts() == {}


def test_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave a model of empty files, and no checkpoint any more."""

    def save(folder: Path) -> None:
        (folder / "query").mkdir(parents=True)
        (folder / "rocketray.json").write_text("{}")
        (folder / "query" / "config.json").write_text("{}")

    model, done, rename = tmp_path / "model", list[object](), Path.replace

    def renamed(temporary: Path, path: Path) -> Path:
        done.append("renamed")
        return rename(temporary, path)

    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(Path, "replace", renamed)
    model.mkdir()
    (model / "of an attempt before").touch()
    artifacts.publish_folder(save, model)
    assert files(tmp_path) == ["model/query/config.json", "model/rocketray.json"]
    at = done.index("renamed")
    assert set(done[:at]) == {path.stat().st_ino for path in (model, *model.rglob("*"))}
    assert done[at + 1 :] == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("content", [b"", b'{"block": 0', b"\xff\xfe", b"[]", b"{}", b"3"])
def test_a_damaged_receipt_counts_as_none(tmp_path: Path, content: bytes) -> None:
    for number in range(2):
        commit(tmp_path / "stage", number, number)
    (tmp_path / "stage" / "receipts" / "00000.json").write_bytes(content)
    assert list(draft(tmp_path).receipts()) == [1]


def test_a_receipt_without_its_file_counts_as_none(tmp_path: Path) -> None:
    commit(tmp_path / "stage", 0, 1)
    (tmp_path / "stage" / "blocks" / "00000.parquet").unlink()
    assert draft(tmp_path).receipts() == {}


def test_a_version_with_a_block_missing_cannot_finish(tmp_path: Path) -> None:
    made = draft(tmp_path)
    commit(made.path, 1, 1)
    with pytest.raises(ValueError, match="should have 2 blocks, found 1"):
        made.finish({}, blocks=2)
    with pytest.raises(UserError, match="is not a finished stage"):
        Version.open(made.path)


# --------------------------------------------------------------------------------------- manifest


def test_the_manifest_lists_every_file_with_its_sha256(tmp_path: Path) -> None:
    made = draft(tmp_path)
    commit(made.path, 0, 1)
    (made.path / "model").mkdir()
    (made.path / "model" / "config.json").write_text("{}")
    version = made.finish({}, files=[made.path / "model" / "config.json"])
    names = ["blocks/00000.parquet", "model/config.json"]
    assert version.manifest["sha256"] == {name: file_sha256(made.path / name) for name in names}
    version.verify()


def test_verify_names_file_expected_and_found(tmp_path: Path) -> None:
    made = draft(tmp_path)
    commit(made.path, 0, 1)
    version = made.finish({})
    path = made.path / "blocks" / "00000.parquet"
    before = file_sha256(path)
    damage(path)
    with pytest.raises(UserError) as error:
        version.verify()
    assert str(error.value) == (
        f"{path} differs from its manifest: expected sha256 {before}, found {file_sha256(path)}."
        f" Remove {made.path} to make this stage again."
    )
    path.unlink()
    with pytest.raises(UserError, match="found no such file"):
        version.verify()


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(.*\)\. Remove it;"):
        Version.open(tmp_path)


def test_the_fingerprint_is_of_the_identity_and_the_digest_of_the_content(tmp_path: Path) -> None:
    def finish(name: str, identity: dict[str, Any], value: int) -> Version:
        made = Draft(tmp_path / name, "stage", identity)
        commit(made.path, 0, value)
        return made.finish({})

    one = finish("one", {"epochs": 1}, 5)
    other_identity = finish("two", {"epochs": 2}, 5)
    other_content = finish("three", {"epochs": 1}, 6)
    assert one.digest == other_identity.digest != other_content.digest
    assert one.manifest["fingerprint"] == other_content.manifest["fingerprint"]
    assert one.manifest["fingerprint"] != other_identity.manifest["fingerprint"]


def test_the_order_of_fields_is_no_part_of_a_fingerprint() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_changes_in_words() -> None:
    old = {"code": 1, "recipe": {"epochs": 2, "kind": "x"}, "inputs": {"run": "a" * 60}}
    new = {"code": 1, "recipe": {"epochs": 3}, "inputs": {"run": "b"}, "more": None}
    assert changes(old, new) == [
        f'inputs.run "{"a" * 36}... -> "b"',
        "recipe.epochs 2 -> 3",
        'recipe.kind "x" -> null',
    ]
    assert changes(old, old) == []


@pytest.mark.parametrize(
    "kind",
    [
        pa.uuid(),
        pa.list_(pa.uuid()),
        pa.struct([("inner", pa.json_())]),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_foreign_types_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.Table.from_batches([], schema=pa.schema([("odd", kind)]))
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet holds column 'odd' of foreign type"):
        read_table(tmp_path / "x.parquet")


# --------------------------------------------------------------------------------------- adoption


def test_equal_blocks_of_another_version_are_linked(tmp_path: Path) -> None:
    old, new = draft(tmp_path, "stage-old"), draft(tmp_path, "stage-new")
    for number, key in enumerate(("a", "b")):
        commit(old.path, number, number, key=key)
    old.finish({})
    assert new.adopt({0: "c", 1: "a", 2: "d"}) == 1
    (receipt,) = new.receipts().values()
    assert (receipt["block"], receipt["files"]) == (1, {"table": "blocks/00001.parquet"})
    mine, theirs = new.path / "blocks/00001.parquet", old.path / "blocks/00000.parquet"
    assert mine.samefile(theirs)
    assert receipt["sha256"] == {"blocks/00001.parquet": file_sha256(theirs)}
    commit(new.path, 0, 8, key="c")
    commit(new.path, 2, 9, key="d")
    assert new.finish({}, blocks=3).read()["n"].to_pylist() == [8, 0, 9]


def chosen(made: Draft, precision: str) -> None:
    """As the first worker of a stage writes it down."""
    artifacts.write_json(made.path / "choices.json", {"precision": precision, "tokens": 64})


def old_version(folder: Path, name: str, precision: str, *keys: str) -> Version:
    made = draft(folder, f"stage-{name}")
    for number, key in enumerate(keys):
        commit(made.path, number, ord(key), key=key)
    chosen(made, precision)
    return made.finish({})


def test_blocks_are_adopted_from_one_precision_alone(tmp_path: Path) -> None:
    """From that which has most of them; a worker of the new version goes on in it."""
    old_version(tmp_path, "a", "float32", "a", "b")
    half = old_version(tmp_path, "b", "bfloat16", "b", "c", "d")
    new = draft(tmp_path, "stage-new")
    assert new.adopt({0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}) == 3
    assert sorted(new.receipts()) == [1, 2, 3]
    assert (new.path / "blocks/00001.parquet").samefile(half.path / "blocks/00000.parquet")
    assert artifacts.read_json(new.path / "choices.json") == {"precision": "bfloat16"}


def test_a_version_that_was_begun_adopts_what_is_like_it(tmp_path: Path) -> None:
    old_version(tmp_path, "a", "float32", "a")
    old_version(tmp_path, "b", "bfloat16", "b", "c")
    new = draft(tmp_path, "stage-new")
    chosen(new, "float32")
    assert new.adopt({0: "a", 1: "b", 2: "c"}) == 1
    assert list(new.receipts()) == [0]
    assert artifacts.read_json(new.path / "choices.json") == {"precision": "float32", "tokens": 64}


def test_who_adopts_nothing_chooses_nothing(tmp_path: Path) -> None:
    old_version(tmp_path, "a", "bfloat16", "a")
    new = draft(tmp_path, "stage-new")
    assert new.adopt({0: "z"}) == 0
    assert not new.path.exists()


def test_a_damaged_block_is_not_adopted(tmp_path: Path) -> None:
    """Linked, it would come back whenever its stage is removed to be made again."""
    old, new = draft(tmp_path, "stage-old"), draft(tmp_path, "stage-new")
    for number, key in enumerate("ab"):
        commit(old.path, number, number, key=key)
    old.finish({})
    damage(old.path / "blocks/00000.parquet")
    assert new.adopt({0: "a", 1: "b"}) == 1
    assert list(new.receipts()) == [1]


def test_a_stopped_versions_blocks_are_adopted_and_another_stages_are_not(tmp_path: Path) -> None:
    other = draft(tmp_path, "other-old")
    commit(other.path, 0, 1, key="a")
    other.finish({})
    assert draft(tmp_path, "stage-new").adopt({0: "a", 1: "b"}) == 0
    commit(tmp_path / "stage-stopped", 0, 1, key="a")
    assert draft(tmp_path, "stage-new").adopt({0: "a", 1: "b"}) == 1


# ------------------------------------------------------------------------------------ one writer


def test_a_second_writer_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").claim()
    with pytest.raises(UserError) as error:
        RunFolder(tmp_path / "run").claim()
    assert f"is being written by process {os.getpid()} on {os.uname().nodename}" in str(error.value)
    assert "--take-over" in str(error.value)


def test_after_a_release_the_next_epoch_begins(tmp_path: Path) -> None:
    for epoch in (1, 2):
        folder = RunFolder(tmp_path / "run")
        folder.claim()
        assert folder.writer == Writer(epoch)
        folder.check_writer()
        folder.release()
    assert files(tmp_path / "run") == ["writers/000001.json", "writers/000002.json"]


def test_a_dead_writer_is_superseded(tmp_path: Path) -> None:
    claim = "import sys; from rocketray.artifacts import RunFolder; RunFolder(sys.argv[1]).claim()"
    subprocess.run([sys.executable, "-c", claim, str(tmp_path / "run")], check=True)
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    assert folder.writer == Writer(2)


def test_a_pid_that_came_back_is_not_the_writer(tmp_path: Path) -> None:
    writers = tmp_path / "writers"
    writers.mkdir()
    artifacts.write_json(
        writers / "000004.json",
        {"epoch": 4, "host": os.uname().nodename, "pid": os.getpid(), "born": "1"},
    )
    folder = RunFolder(tmp_path)
    folder.claim()
    assert folder.writer == Writer(5)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_claim_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "writers").mkdir()
    (tmp_path / "writers" / "000004.json").write_bytes(content)
    folder = RunFolder(tmp_path)
    folder.claim()
    assert folder.writer is not None
    assert folder.writer.epoch == 5


def elsewhere(folder: Path, born: str) -> RunFolder:
    (folder / "writers").mkdir()
    artifacts.write_json(
        folder / "writers" / "000001.json",
        {"epoch": 1, "host": "another-host", "pid": 1, "born": born},
    )
    return RunFolder(folder)


def test_a_writer_on_another_host_holds_until_it_is_taken_over(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path, born="123")
    with pytest.raises(UserError, match="process 1 on another-host"):
        folder.claim()
    folder.claim(take_over=True)
    assert folder.writer == Writer(2)


def test_a_folder_released_on_another_host_is_free(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path, born="")
    folder.claim()
    assert folder.writer == Writer(2)


def test_who_was_taken_over_stops(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim()
    second.claim(take_over=True)
    second.check_writer()
    with pytest.raises(Superseded, match=f"taken over by process {os.getpid()}"):
        first.check_writer()
    first.release()
    second.check_writer()


def test_of_two_claims_at_once_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    monkeypatch.setattr(RunFolder, "_holder", lambda folder: None)
    first.claim()
    with pytest.raises(UserError, match="has just been claimed by another process"):
        second.claim()
    assert files(tmp_path / "run") == ["writers/000001.json"]


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"\(a\.txt, b\.txt, c\.txt, \.\.\.\)\. Give --out a new"):
        RunFolder(tmp_path).claim()
    assert files(tmp_path) == ["a.txt", "b.txt", "c.txt", "d.txt"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; --out needs a folder"):
        RunFolder(tmp_path / "file").claim()
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run").claim()


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        RunFolder(tmp_path / "run").claim()


def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")  # As exFAT says it.

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="cannot hold hard links"):
        RunFolder(tmp_path / "run").claim()
    assert files(tmp_path / "run") == []


# ------------------------------------------------------------------------------------- run folder


def test_current_versions(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="is not a rocketray run: it has no current"):
        RunFolder.open(folder.path)
    for epochs in (1, 2):
        made = folder.draft("dual_0", {"epochs": epochs})
        assert folder.finished("dual_0", {"epochs": epochs}) is None
        commit(made.path, 0, epochs)
        folder.set_current(made.finish({}))
    assert folder.finished("dual_0", {"epochs": 1}) is not None
    assert RunFolder.open(folder.path).version("dual_0").read()["n"].to_pylist() == [2]
    with pytest.raises(UserError, match=r"has no finished stage 'cross'\. It has: dual_0"):
        folder.version("cross")


def test_a_version_that_somebody_removed_is_not_current(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    made = folder.draft("dual_0", {})
    commit(made.path, 0, 1)
    folder.set_current(made.finish({}))
    (made.path / "manifest.json").unlink()
    assert folder.current() == {}


def test_a_tree_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").touch()
    artifacts.copy_tree(tmp_path / "old", tmp_path / "out" / "model")
    artifacts.copy_tree(tmp_path / "new", tmp_path / "out" / "model")
    assert files(tmp_path / "out") == ["model/new.txt"]


def test_some_rows_of_some_columns(tmp_path: Path) -> None:
    """Blocks without a wanted row are not read."""
    for number, values in enumerate([(0, 1), (2, 3, 4), (5,)]):
        table = numbers(*values).append_column("twice", pa.array([2 * v for v in values]))
        commit_block(tmp_path / "x", number, {"table": table}, rows=len(values), key="", facts={})
    version = Draft(tmp_path / "x", "x", {}).finish({})
    version.blocks[1].files["table"].unlink()
    found = version.take(np.array([1, 5]), "twice")
    assert found.to_pydict() == {"twice": [2, 10]}
    assert version.take(np.array([], np.int64), "n").to_pydict() == {"n": []}
    assert version.table(0, ["n"]).column_names == ["n"]
