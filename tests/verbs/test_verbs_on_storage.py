"""Verbs whose folder is on object storage, each on a machine that was never there: they know what
it holds, and leave there, not on the machine, what they would leave on a disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rocketray import cli, storage
from rocketray.artifacts import RunFolder, commit_block
from rocketray.errors import UserError
from rocketray.verbs import upkeep, work
from tests.s3 import Node
from tests.verbs.conftest import Place
from tests.versions import run

RUN = "told_test_top10"


def sent(disk: Path, on: Node) -> Path:
    """The folder's url, for a machine that has seen nothing of it."""
    out = on("sender")
    shutil.copytree(disk, out)
    storage.push(out)
    return Path(storage.shown(on("reader")))


def published(out: Path) -> dict[str, bytes | None]:
    """What verbs leave for other tools."""
    files = [path for name in ("runs", "examples", "index") for path in storage.files(out / name)]
    read = storage.read if storage.mirrored(out) else Path.read_bytes
    return {path.relative_to(out).as_posix(): read(path) for path in files}


# ----------------------------------------------------------------------------------------- upkeep


def test_status_and_clean_know_what_the_store_holds(tmp_path: Path, on: Node) -> None:
    """One stage with two old versions, and one that has only begun."""
    folder = RunFolder(tmp_path / "disk")
    folder.claim()
    for threshold in (0.1, 0.2, 0.3):
        draft = folder.draft("denoise", {"recipe": threshold})
        commit_block(draft.path, 0, {"table": run((0, [1]))}, rows=1, key="", facts={})
        folder.set_current(draft.finish({}))
    started = folder.draft("augment", {}).path
    started.mkdir()
    (started / "wanted.json").write_text('{"blocks": 3}')
    folder.release()
    here, url = upkeep.status(folder.path), sent(folder.path, on)
    there = upkeep.status(url)
    assert there.versions == here.versions
    assert [stored.total for stored in there.versions if stored.state == "unfinished"] == [3]
    assert there.size == here.size

    first, second = sorted(stored.folder for stored in here.old())
    time.sleep(1.1)  # A store tells seconds.
    storage.push(on("sender") / "stages" / first / "manifest.json")
    on("reader")
    chosen = upkeep.clean(url, keep=1, dry_run=True)
    assert [stored.folder for stored in (*chosen.recent, *chosen.removed)] == [first, second]

    before = storage.files(storage.locate(url))
    dry = upkeep.clean(url, dry_run=True)
    assert storage.files(storage.locate(url)) == before
    assert dry == upkeep.clean(url)
    gone = set(before) - set(storage.files(storage.locate(url)))
    assert {path.relative_to(storage.locate(url)).parts[1] for path in gone} == {first, second}
    assert dry.freed == sum(stored.size for stored in dry.removed)


# ------------------------------------------------------------------------------------------ verbs


@pytest.mark.slow
def test_what_verbs_leave_is_in_the_store(place: Place, on: Node) -> None:
    """Each on another machine, and by the folder's own words: its tables, its model, its run."""
    url = sent(place.out, on)

    def both(verb: Callable[..., object], machine: str, **options: object) -> str:
        place.do(verb, **options)
        on(machine)
        return place.do(verb, out=url, **options)[1]

    both(work.retrieve, "a", model="told", k=7)
    printed = both(work.score, "b", run="told_test_top7", model=str(place.cross), k=5)
    assert (
        f"scored run: {storage.shown(on('b'))}/runs/told_test_top7_by_reranker.trec and .parquet"
        in printed
    )
    both(work.denoise, "c", run="told_test_top7", model="reranker", k=5)
    printed = both(work.index, "d", model="told")
    assert f"index: {storage.shown(on('d'))}/index/told.faiss" in printed
    found = published(on("e"))
    assert found == published(place.out)
    assert len(found) == 7


def test_files_may_be_asked_for_by_url(place: Place, bucket: str) -> None:
    to, ids = (Path(f"{bucket}/files/{name}") for name in ("e.npy", "ids.txt"))
    _, printed = place.do(work.encode, model="told", to=to, ids=ids)
    assert f"embeddings: {bucket}/files/e.npy" in printed
    names = [path.name for path in storage.files(storage.locate(f"{bucket}/files"))]
    assert names == ["e.npy", "ids.txt"]


def test_an_empty_prefix_holds_no_passages(
    place: Place, on: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    url = storage.shown(on("reader"))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["encode", "--model", str(place.told), "--out", url])
    assert f"{url} holds no passages yet" in " ".join(capsys.readouterr().err.split())
    assert storage.files(on("other")) == []


# ------------------------------------------------------------------------------------------ pairs


def test_pairs_are_shared_through_a_store(
    place: Place, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders on disks, each on a machine of its own, but for the pairs."""
    (place.folder / "job").mkdir()
    monkeypatch.chdir(place.folder / "job")
    other = place.copied(place.folder / "other")
    told = {"run": RUN, "model": str(place.cross), "pairs": Path(f"{bucket}/pairs")}
    place.do(work.score, k=5, **told)
    monkeypatch.setenv("ROCKETRAY_CACHE", str(place.folder / "another-node"))
    _, printed = other.do(work.score, k=6, **told)
    assert f"looked up and kept in {bucket}/pairs" in printed
    assert "24 pairs: 20 were known, 4 were scored" in printed
    assert list(Path().iterdir()) == []


def test_a_stage_goes_on_with_the_pairs_it_was_begun_with(place: Place) -> None:
    told = {"run": RUN, "model": str(place.cross)}
    store = place.folder / "pairs"
    place.do(work.score, k=5, pairs=store, **told)
    scored, _ = place.do(work.score, k=6, pairs=store, **told)
    place.do(work.score, k=6, **told)  # It is finished, and looks up nothing.
    (scored.path / "manifest.json").unlink()  # As if it had been killed after its only block.
    with pytest.raises(UserError) as error:
        place.do(work.score, k=6, pairs=place.folder / "elsewhere", **told)
    said = str(error.value)
    assert said.startswith(f"{scored.path.name} was begun with pair scores that ")
    assert f"{place.folder}/elsewhere" in said
    assert f"remove {scored.path} to begin this stage again." in said
    again, printed = place.do(work.score, k=6, pairs=store, **told)
    assert again.digest == scored.digest
    assert "24 pairs: 20 were known, 4 were scored" in printed
