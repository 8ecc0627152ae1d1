"""What a folder holds, told while it works and after; and what may be removed of it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from rocketray import cli
from rocketray.artifacts import RunFolder
from rocketray.engine.bulk import Worker
from rocketray.errors import UserError
from rocketray.progress import Display
from rocketray.verbs import upkeep, work
from tests.toys import job
from tests.verbs.conftest import Place


def printed(place: Place) -> str:
    screen = io.StringIO()
    upkeep.show_status(upkeep.status(place.out), Display(Console(file=screen, width=200)))
    return screen.getvalue()


def rechosen(place: Place) -> None:
    """Verdicts by another threshold: one stage with an old version beside the current one."""
    run, model = "told_test_top10", str(place.cross)
    for below in (0.1, 0.2, 0.3):
        place.do(work.denoise, run=run, model=model, k=5, negative_below=below)


def test_status_of_a_finished_folder(place: Place) -> None:
    found = upkeep.status(place.out)
    by_stage = {stored.stage: stored for stored in found.versions}
    assert set(by_stage) == set(RunFolder.open(place.out).current())
    assert {stored.state for stored in found.versions} == {"current"}
    assert (by_stage["told_embeddings"].blocks, by_stage["told_embeddings"].rows) == (3, 40)
    assert by_stage["told_embeddings"].size > 40 * 32 * 4
    assert found.size >= sum(stored.size for stored in found.versions)
    assert found.writer is None
    assert "writer: nobody" in printed(place)


def test_status_of_a_stage_that_is_being_made(place: Place) -> None:
    folder = RunFolder(place.out)
    folder.claim()
    draft = folder.draft("doubled", {"test": 1})
    draft.path.mkdir()
    (draft.path / "wanted.json").write_text('{"blocks": 3}')
    Worker([job(draft, [[1], [2], [3]])]).make(0, 1)
    stored = next(s for s in upkeep.status(place.out).versions if s.stage == "doubled")
    assert (stored.state, stored.blocks, stored.total, stored.rows) == ("unfinished", 1, 3, 1)
    words = printed(place)
    assert "1/3" in words
    assert "running" in words
    assert f"writer: process {os.getpid()} on" in words
    folder.release()
    assert "stopped" in printed(place)


def test_status_as_json(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["status", str(place.out), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["writer"] is None
    assert {"stage", "state", "blocks", "total", "rows", "size"} <= set(found["versions"][0])


def test_clean_removes_what_is_old_and_nothing_else(place: Place) -> None:
    rechosen(place)
    before = RunFolder.open(place.out).current()
    old = {s.folder for s in upkeep.status(place.out).old()}
    assert len(old) == 2
    dry = upkeep.clean(place.out, dry_run=True)
    assert (
        {s.folder for s in dry.removed} == old == {s.folder for s in upkeep.status(place.out).old()}
    )
    done = upkeep.clean(place.out)
    assert (done.removed, done.freed) == (dry.removed, dry.freed)
    assert upkeep.status(place.out).old() == []
    assert RunFolder.open(place.out).current() == before
    for name in before:
        RunFolder.open(place.out).version(name).verify()


def test_the_newest_are_spared(place: Place) -> None:
    rechosen(place)
    chosen = upkeep.clean(place.out, keep=1)
    assert (len(chosen.removed), len(chosen.recent)) == (1, 1)
    assert [s.folder for s in upkeep.status(place.out).old()] == [chosen.recent[0].folder]


def test_what_went_into_a_current_version_stays(place: Place) -> None:
    """A scored run whose run is made again with another model stays, and so does its run."""
    place.do(work.score, run="told_test_top10", model=str(place.cross), k=5)
    with (place.told / "config_sentence_transformers.json").open("w") as file:
        json.dump({"prompts": {"query": "other: ", "document": ""}}, file)
    place.do(work.retrieve, model=str(place.told), k=10)
    chosen = upkeep.clean(place.out)
    assert "told_test_top10" in {stored.stage for stored in chosen.needed}
    assert chosen.removed == []


def test_linked_blocks_are_not_lost_and_free_nothing(place: Place) -> None:
    """Appended passages: old blocks are the new version's, too."""
    first = RunFolder.open(place.out).version("told_embeddings")
    with (place.data / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "new", "text": "a"}\n')
    place.do(work.encode, data=place.data, model=str(place.told))
    linked = first.blocks[0].files["embeddings"].stat()
    chosen = upkeep.clean(place.out, dry_run=True)
    assert linked.st_nlink == 2
    assert chosen.needed  # The run of the old embeddings is still current.
    size = next(s.size for s in upkeep.status(place.out).old() if s.stage == "told_embeddings")
    assert chosen.freed < size + sum(s.size for s in chosen.removed)


def test_a_living_writer_is_not_cleaned_behind(place: Place) -> None:
    folder = RunFolder(place.out)
    folder.claim()
    with pytest.raises(UserError, match="is being written by process"):
        upkeep.clean(place.out)
    folder.release()


@pytest.mark.parametrize("verb", ["status", "clean"])
def test_a_folder_that_is_no_run(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="2"):
        cli.main([verb, str(tmp_path)])
    assert "is not a rocketray run" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
