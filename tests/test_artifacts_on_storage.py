"""Versions and the one writer where the run folder is on object storage: two nodes, one bucket."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rocketray import artifacts, storage
from rocketray.artifacts import Draft, RunFolder, Superseded, Version, Writer, commit_block
from rocketray.errors import UserError
from tests import s3
from tests.s3 import Node


def draft(run: Path, name: str = "stage-1") -> Draft:
    return Draft(run / "stages" / name, name.partition("-")[0], {"name": name})


def commit(made: Draft, number: int, *values: int, key: str = "") -> dict[str, Any]:
    parts = {"table": pa.table({"n": pa.array(values, pa.int64())})}
    return commit_block(made.path, number, parts, rows=len(values), key=key, facts={})


def values(version: Version) -> list[int]:
    found: list[int] = version.read()["n"].to_pylist()
    return found


def blocks(version: Path) -> list[str]:
    """Those on this node."""
    return sorted(path.name for path in (version / "blocks").glob("*"))


def finished(run: Path, *rows: int, name: str = "stage-1") -> Version:
    made = draft(run, name)
    for number, row in enumerate(rows):
        commit(made, number, row, key=str(row))
    return made.finish({"count": len(rows)}, blocks=len(rows))


# --------------------------------------------------------------------------------------- versions


def test_a_version_made_on_one_node_is_read_on_another(on: Node) -> None:
    made = finished(on("a"), 1, 2, 3)
    version = Version.open(draft(on("b")).path)
    assert version.manifest == made.manifest
    assert blocks(version.path) == []
    version.verify()
    assert blocks(version.path) == []
    assert version.table(1)["n"].to_pylist() == [2]
    assert blocks(version.path) == ["00001.parquet"]
    assert values(version) == [1, 2, 3]


def test_arrays_come_back_memory_mapped(on: Node) -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    made = draft(on("a"))
    for number in range(2):
        parts = {"a": array + number, "b": array}
        commit_block(made.path, number, parts, rows=3, key="", facts={})
    made.finish({})
    version = Version.open(draft(on("b")).path)
    assert isinstance(version.array(1, "a"), np.memmap)
    np.testing.assert_array_equal(version.array(1, "a"), array + 1)
    version.fetch("b")
    assert blocks(version.path) == ["00000-b.npy", "00001-a.npy", "00001-b.npy"]


def test_plain_files_come_together(on: Node) -> None:
    made = draft(on("a"))
    files = [made.path / "model" / name for name in ("query/config.json", "query/x", "passage/x")]
    for path in files:
        artifacts.write_text(path, path.name)
    made.finish({}, files=files)
    assert not artifacts.brought(on("b") / "tiny").exists()
    model = artifacts.brought(draft(on("b")).path / "model" / "query")
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "x"]
    assert not (model.parent / "passage").exists()


def test_a_damaged_block_is_refused(on: Node) -> None:
    version = finished(on("a"), 1, 2)
    expected = version.manifest["sha256"]["blocks/00001.parquet"]
    path = version.path / "blocks" / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    storage.push(path)
    version = Version.open(draft(on("b")).path)
    assert version.table(0)["n"].to_pylist() == [1]
    with pytest.raises(UserError) as error:
        version.table(1)
    url = storage.shown(path)
    assert f"{url} differs from its manifest: expected sha256 {expected}" in str(error.value)
    assert blocks(version.path) == ["00000.parquet"]


def test_a_block_that_somebody_removed_is_named(on: Node) -> None:
    path = finished(on("a"), 1, 2).path
    storage.remove(path / "blocks" / "00001.parquet")
    version = Version.open(draft(on("b")).path)
    url = storage.shown(version.path)
    message = f"{url}/blocks/00001.parquet differs .* no such file. Remove {url} to make"
    with pytest.raises(UserError, match=message):
        version.verify()
    with pytest.raises(UserError, match=message):
        version.table(1)


def test_an_unfinished_version_is_none(on: Node) -> None:
    made = draft(on("a"))
    commit(made, 0, 1)
    with pytest.raises(UserError, match=r"^s3://.*/stages/stage-1 is not a finished stage"):
        Version.open(draft(on("b")).path)


def test_a_damaged_manifest_is_named(on: Node) -> None:
    path = finished(on("a"), 1).path / "manifest.json"
    artifacts.write_text(path, "{")
    with pytest.raises(UserError, match=r"^s3://.*/manifest\.json is damaged"):
        Version.open(draft(on("b")).path)


def test_a_version_that_was_made_again_elsewhere_is_read_anew(on: Node) -> None:
    finished(on("a"), 1, 2)
    assert values(Version.open(draft(on("b")).path)) == [1, 2]
    storage.remove(draft(on("a")).path)
    finished(on("a"), 1, 7)
    assert values(Version.open(draft(on("b")).path)) == [1, 7]


def test_what_a_killed_attempt_left_on_a_node_is_not_taken_for_the_version(on: Node) -> None:
    """Its bytes differ, as those of a GPU may."""
    for node in "ab":
        path = draft(on(node)).path / "blocks" / "00000.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"another attempt's")
    made = draft(on("c"))
    commit(made, 0, 5)
    assert values(draft(on("a")).finish({})) == [5]
    assert values(Version.open(draft(on("b")).path)) == [5]


# ----------------------------------------------------------------------------------------- drafts


def test_another_driver_goes_on_where_the_first_was_killed(on: Node) -> None:
    made = draft(on("a"))
    receipts = {number: commit(made, number, number) for number in range(2)}
    made = draft(on("b"))
    assert made.receipts() == receipts
    receipts[2] = commit(made, 2, 2)
    assert draft(on("a")).receipts() == receipts
    assert values(draft(on("c")).finish({}, blocks=3)) == [0, 1, 2]
    undisturbed = finished(on("d"), 0, 1, 2)
    assert {**undisturbed.manifest, "facts": {}, "blocks": []} == {
        **Version.open(draft(on("a")).path).manifest, "facts": {}, "blocks": [],
    }  # fmt: skip


def test_a_block_killed_before_its_receipt_is_not_done(
    on: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, receipt: Any) -> None:
        raise KeyboardInterrupt

    made = draft(on("a"))
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_receipt", killed)
        with pytest.raises(KeyboardInterrupt):
            commit(made, 0, 1)
    assert storage.files(made.path) == [made.path / "blocks" / "00000.parquet"]
    assert made.receipts() == draft(on("b")).receipts() == {}


def test_a_receipt_that_only_this_node_has_counts_as_none(on: Node) -> None:
    made = draft(on("a"))
    commit(made, 0, 1)
    storage.remove(draft(on("b")).path / "receipts" / "00000.json")
    assert draft(on("a")).receipts() == {}


def test_who_looks_while_a_block_is_sent_takes_nothing_away(
    on: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rocketray status` on a worker's node, or the run itself that looks for signs of work."""
    made, push, seen = draft(on("a")), storage.push, list[list[int]]()

    def look_and_push(path: Path, *name: Path) -> None:
        seen.append(list(made.receipts()))
        push(path, *name)

    monkeypatch.setattr(storage, "push", look_and_push)
    commit(made, 0, 1)
    assert seen == [[], []]  # Before the block was sent, before its receipt was.
    assert list(made.receipts()) == list(draft(on("b")).receipts()) == [0]


def test_a_block_that_comes_while_the_store_is_listed_stays(
    on: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, listed = draft(on("a")), storage._listed

    def list_and_commit(folder: Path, *, below: bool) -> Any:
        found = listed(folder, below=below)
        if folder.name == "receipts":
            commit(made, 0, 1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_listed", list_and_commit)
        made.receipts()
    assert (made.path / "receipts" / "00000.json").is_file()
    assert list(made.receipts()) == [0]


def test_a_receipt_without_its_file_counts_as_none(on: Node) -> None:
    made = draft(on("a"))
    commit(made, 0, 1)
    storage.remove(made.path / "blocks" / "00000.parquet")
    assert draft(on("b")).receipts() == {}


def test_equal_blocks_are_copied_by_the_store(on: Node) -> None:
    finished(on("a"), 4, 5)
    run = RunFolder(on("b"))
    run._sync()
    new = draft(run.path, "stage-2")
    assert new.adopt({0: "9", 1: "4"}) == 1
    assert not (new.path / "blocks").exists()
    commit(new, 0, 9)
    assert values(new.finish({}, blocks=2)) == [9, 4]


def test_the_precision_of_adopted_blocks_comes_with_them(on: Node) -> None:
    old = finished(on("a"), 4, 5)
    artifacts.write_json(old.path / "choices.json", {"precision": "bfloat16"})
    RunFolder(on("b"))._sync()
    new = draft(on("b"), "stage-2")
    assert new.adopt({0: "5"}) == 1
    path = draft(on("c"), "stage-2").path
    assert artifacts.chosen_precision(path) == "bfloat16"


# ------------------------------------------------------------------------------------- one writer


def test_a_second_writer_is_refused_and_told_who_holds_the_run(on: Node, bucket: str) -> None:
    RunFolder(f"{bucket}/run").claim()
    with pytest.raises(UserError) as error:
        RunFolder(on("b")).claim()
    assert f"{bucket}/run is being written by process {os.getpid()} on " in str(error.value)


def test_after_a_release_the_next_epoch_begins(on: Node) -> None:
    for epoch, node in enumerate("abc", start=1):
        folder = RunFolder(on(node))
        folder.claim()
        assert folder.writer == Writer(epoch)
        folder.check_writer()
        folder.release()
    assert [path.name for path in storage.files(on("d"))] == [
        "000001.json", "000002.json", "000003.json",
    ]  # fmt: skip


def test_who_was_taken_over_on_another_node_stops(on: Node) -> None:
    first, second = RunFolder(on("a")), RunFolder(on("b"))
    first.claim()
    second.claim(take_over=True)
    second.check_writer()
    with pytest.raises(Superseded, match=f"^s3://.*/run was taken over by process {os.getpid()}"):
        first.check_writer()
    first.release()
    second.check_writer()


def test_of_two_claims_at_once_one_wins(on: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RunFolder(on("a")), RunFolder(on("b"))
    monkeypatch.setattr(RunFolder, "_holder", lambda folder: None)
    first.claim()
    with pytest.raises(UserError, match="has just been claimed by another process"):
        second.claim()


def test_a_holder_elsewhere_whose_job_has_ended_is_superseded(on: Node) -> None:
    path = on("a") / "writers" / "000001.json"
    holder = {"epoch": 1, "host": "another-host", "pid": 1, "born": "123", "job": "first@head:6379"}
    artifacts.write_json(path, holder)
    asked: list[str] = []

    def has_ended(job: str) -> bool:
        asked.append(job)
        return len(asked) > 1

    with pytest.raises(UserError, match="process 1 on another-host"):
        RunFolder(on("b")).claim(has_ended=has_ended)
    folder = RunFolder(on("b"))
    folder.claim(has_ended=has_ended)
    assert folder.writer == Writer(2)
    assert asked == ["first@head:6379"] * 2


def test_a_prefix_with_something_else_is_refused(on: Node, bucket: str) -> None:
    artifacts.write_text(on("a") / "corpus.jsonl", "{}")
    with pytest.raises(UserError, match=rf"^{bucket}/run holds something else .*corpus\.jsonl"):
        RunFolder(on("b")).claim()


# ------------------------------------------------------------------------------------- run folder


def test_a_node_that_was_never_here_knows_how_far_the_run_is(on: Node) -> None:
    with pytest.raises(UserError, match=r"^s3://.*/run is not a rocketray run"):
        RunFolder.open(on("a"))
    first = RunFolder(on("a"))
    first.claim()
    for epochs in (1, 2):
        made = first.draft("dual_0", {"epochs": epochs})
        commit(made, 0, epochs)
        first.set_current(made.finish({}))
    commit(first.draft("cross", {}), 0, 1)
    first.release()
    second = RunFolder(on("b"))
    second.claim()
    assert second.current() == first.current()
    assert values(second.version("dual_0")) == [2]
    old = second.finished("dual_0", {"epochs": 1})
    assert old is not None
    assert values(old) == [1]
    assert second.finished("cross", {}) is None
    assert list(second.draft("cross", {}).receipts()) == [0]
    assert values(RunFolder.open(on("c")).version("dual_0")) == [2]


def test_a_stage_that_somebody_removed_is_made_again(on: Node) -> None:
    folder = RunFolder(on("a"))
    folder.claim()
    made = folder.draft("dual_0", {})
    commit(made, 0, 1)
    folder.set_current(made.finish({}))
    folder.release()
    storage.remove(RunFolder(on("b")).draft("dual_0", {}).path)
    folder = RunFolder(on("a"))
    folder.claim()
    assert folder.current() == {}
    assert folder.finished("dual_0", {}) is None


def test_a_version_that_was_removed_elsewhere_is_none_for_a_reader(on: Node) -> None:
    folder = RunFolder(on("a"))
    folder.claim()
    for name in ("dual_0", "cross"):
        made = folder.draft(name, {})
        commit(made, 0, 1)
        folder.set_current(made.finish({}))
    folder.release()
    assert set(RunFolder.open(on("b")).current()) == {"dual_0", "cross"}
    storage.remove(RunFolder(on("a")).draft("dual_0", {}).path)
    assert set(RunFolder.open(on("b")).current()) == {"cross"}


def test_a_tree_from_a_disk_replaces_one_there(on: Node, tmp_path: Path) -> None:
    run = on("a")
    artifacts.write_text(run / "model" / "old", "old")
    artifacts.write_text(tmp_path / "saved" / "deep" / "new", "new")
    artifacts.copy_tree(tmp_path / "saved", run / "model")
    assert storage.files(on("b") / "model") == [on("b") / "model" / "deep" / "new"]
    assert storage.read(on("b") / "model" / "deep" / "new") == b"new"


def test_a_tree_is_replaced(on: Node) -> None:
    for name in ("old/a", "old/b/c", "new/a", "new/d"):
        artifacts.write_text(on("a") / name, name)
    run = on("b")
    artifacts.copy_tree(run / "old", run / "models" / "x")
    artifacts.copy_tree(run / "new", run / "models" / "x")
    assert storage.files(run / "models") == [run / "models/x/a", run / "models/x/d"]
    assert storage.read(run / "models/x/a") == b"new/a"
    assert not run.exists()


def test_what_a_block_costs(on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of docs/storage.md: two puts to commit a block, one get to read it."""
    with s3.proxy(s3_server) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        made = draft(on("a"))
        commit(made, 0, 1)
        assert proxy.seen == {"PUT": 2}
        commit(made, 1, 2)
        made.finish({}, blocks=2)
        before = proxy.seen.copy()
        version = Version.open(draft(on("b")).path)
        version.table(0)
        assert proxy.seen - before == {"GET": 2}  # The manifest, the block.
        shutil.rmtree(on("b"))
