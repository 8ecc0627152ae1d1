"""Making versions: skipped when finished, made again for a reason, adopted when equal."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from rocketray.artifacts import RunFolder, Superseded, Version, commit_block, write_json
from rocketray.errors import UserError
from rocketray.progress import Display
from rocketray.recipe import Recipe, load
from rocketray.workflow import Finished, Spec, Workflow, followed
from tests.toys import Deadly, Double


@pytest.fixture(autouse=True)
def made() -> list[Any]:
    Double.made.clear()
    return Double.made


def recipe() -> Recipe:
    return load("tiny", ["cluster.bulk.actors=0", "cluster.train.workers=0"])


def workflow(folder: Path, **options: Any) -> Workflow:
    console = Console(file=io.StringIO(), width=200)
    return Workflow(recipe(), RunFolder(folder / "run"), Display(console), **options)


def said(flow: Workflow) -> str:
    file = flow.display.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def numbers(flow: Workflow, blocks: Sequence[Sequence[int]]) -> Version:
    parts = [{"table": pa.table({"n": pa.array(block, pa.int64())})} for block in blocks]
    return flow.small("numbers", {"content": [list(b) for b in blocks]}, lambda: list(parts))


def double(flow: Workflow, source: Version, name: str = "double", **settings: Any) -> Version:
    spec = Spec(name=name, stage=Double, inputs={"table": source}, settings=settings, over="table")
    return flow.bulk(spec)[0]


# ------------------------------------------------------------------------------ making, skipping


def test_a_stage_maps_the_blocks_of_its_input(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1, 2], [3]]))
    assert version.read()["n"].to_pylist() == [2, 4, 6]
    assert [block.rows for block in version.blocks] == [2, 1]
    assert version.facts == {"numbers": 3}
    assert list(flow.made) == ["numbers", "double"]
    assert set(flow.folder.current()) == {"numbers", "double"}


def test_the_same_again_is_skipped(tmp_path: Path, made: list[Any]) -> None:
    for _ in range(2):
        flow = workflow(tmp_path)
        double(flow, numbers(flow, [[1], [2]]), factor=3)
    assert made == [0, 1]
    assert flow.skipped == ["numbers", "double"]
    assert said(flow).count("finished before, skipped") == 2


def test_a_changed_setting_makes_it_again_and_says_why(tmp_path: Path, made: list[Any]) -> None:
    for factor in (2, 3):
        flow = workflow(tmp_path)
        version = double(flow, numbers(flow, [[1]]), factor=factor)
    assert version.read()["n"].to_pylist() == [3]
    assert flow.skipped == ["numbers"]
    assert "double                     again, because recipe.factor 2 -> 3" in said(flow)
    flow = workflow(tmp_path)
    assert double(flow, numbers(flow, [[1]]), factor=2).read()["n"].to_pylist() == [2]
    assert len(made) == 2


def test_what_is_only_given_is_no_part_of_the_identity(tmp_path: Path, made: list[Any]) -> None:
    for place in ("here", "there"):
        flow = workflow(tmp_path)
        source = numbers(flow, [[1]])
        spec = Spec(
            name="double", stage=Double, inputs={"table": source}, over="table",
            given={"place": place},
        )  # fmt: skip
        flow.bulk(spec)
    assert made == [0]


def test_new_code_makes_it_again(
    tmp_path: Path, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (1, 2):
        monkeypatch.setattr(Double, "code", code)
        flow = workflow(tmp_path)
        double(flow, numbers(flow, [[1]]))
    assert made == [0, 0]
    assert "again, because code 1 -> 2" in said(flow)


def test_frozen_refuses_instead(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1]]), factor=2)
    flow = workflow(tmp_path, frozen=True)
    source = numbers(flow, [[1]])
    with pytest.raises(UserError, match=r"^--frozen: double .* again: recipe\.factor 2 -> 3\.$"):
        double(flow, source, factor=3)
    double(flow, source, name="more")


def test_what_a_stage_writes_when_it_begins_waits_until_it_may(tmp_path: Path) -> None:
    def spec(source: Version, **settings: Any) -> Spec:
        return Spec(
            name="double", stage=Double, inputs={"table": source}, settings=settings, over="table",
            begin=lambda stage: pytest.fail("begun"),
        )  # fmt: skip

    flow = workflow(tmp_path, until="numbers")
    with pytest.raises(Finished):
        flow.bulk(spec(numbers(flow, [[1]])))
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1]]), factor=2)
    flow = workflow(tmp_path, frozen=True)
    source = numbers(flow, [[1]])
    with pytest.raises(UserError, match=r"^--frozen: double"):
        flow.bulk(spec(source, factor=3))
    assert flow.bulk(spec(source, factor=2))


def test_a_killed_stage_goes_on_with_what_is_missing(tmp_path: Path, made: list[Any]) -> None:
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1], [2], [3]]))
    (version.path / "manifest.json").unlink()
    (version.path / "receipts" / "00001.json").unlink()
    made.clear()
    flow = workflow(tmp_path)
    again = double(flow, numbers(flow, [[1], [2], [3]]))
    assert made == [1]
    assert again.manifest == version.manifest


def test_several_stages_at_once(tmp_path: Path, made: list[Any]) -> None:
    flow = workflow(tmp_path)
    source = numbers(flow, [[1], [2]])
    double(flow, source, name="a")
    specs = [
        Spec(name=name, stage=Double, inputs={"table": source}, over="table") for name in "abc"
    ]
    made.clear()
    assert [version.name for version in flow.bulk(*specs)] == ["a", "b", "c"]
    assert made == [0, 1, 0, 1]


class Choosing(Double):
    """Writes down what it chose, as a worker whose memory or processor is not enough does."""

    def __init__(self, *, choices: str, chosen: dict[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        write_json(Path(choices), chosen)


def test_what_workers_chose_for_want_of_something_is_told_when_the_stage_is_made(
    tmp_path: Path,
) -> None:
    flow = workflow(tmp_path)
    source = numbers(flow, [[1], [2]])

    def told(name: str, **chosen: Any) -> list[str]:
        spec = Spec(
            name=name, stage=Choosing, inputs={"table": source}, settings={"chosen": chosen},
            over="table",
        )  # fmt: skip
        before = said(flow)
        flow.bulk(spec.choosing())
        lines = said(flow).removeprefix(before).splitlines()
        return [line for line in lines if "memory" in line or "int8" in line]

    (memory,) = told("small", precision="float32", tokens=1024)
    assert memory == f"  {'small':<26} memory ran out: blocks begin with 1,024 tokens at once"
    assert told("small", precision="float32", tokens=1024) == []  # It was made before.
    (int8,) = told("slow", int8_gains=False)
    assert int8.startswith(f"  {'slow':<26} int8 gained nothing")
    assert told("well", precision="float32") == []


# ------------------------------------------------------------------------------ what goes together


def test_what_goes_together_becomes_current_in_one_step(tmp_path: Path) -> None:
    """What is theirs and was not made is current no more; others stay."""
    flow = workflow(tmp_path)
    source = numbers(flow, [[1]])
    double(flow, source, name="old")
    with flow.together({"a", "b", "old"}):
        double(flow, source, name="a")
        double(flow, source, name="b")
        assert set(flow.folder.current()) == {"numbers", "old"}
    assert set(flow.folder.current()) == {"numbers", "a", "b"}


def test_of_what_was_refused_together_nothing_is_current(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1]]))
    before = flow.folder.current()
    flow = workflow(tmp_path)
    with pytest.raises(UserError, match="13 is unlucky"), flow.together({"numbers", "double"}):
        double(flow, numbers(flow, [[13]]))
    assert flow.folder.current() == before
    numbers(flow, [[2]])
    assert flow.folder.current() != before


def test_until_waits_for_what_goes_together(tmp_path: Path) -> None:
    flow = workflow(tmp_path, until="numbers")
    with pytest.raises(Finished), flow.together():
        double(flow, numbers(flow, [[1]]))
    assert set(flow.folder.current()) == {"numbers", "double"}


def test_who_was_taken_over_makes_nothing_current_together(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    flow.folder.claim()

    def overtaken() -> None:
        with flow.together():
            numbers(flow, [[1]])
            RunFolder(flow.folder.path).claim(take_over=True)

    with pytest.raises(Superseded):
        overtaken()
    assert flow.folder.current() == {}


# --------------------------------------------------------------------------------------- adoption


def test_appended_rows_make_only_their_own_blocks(tmp_path: Path, made: list[Any]) -> None:
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1], [2]]))
    made.clear()
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1], [2], [3]]))
    assert made == [2]
    assert version.read()["n"].to_pylist() == [2, 4, 6]


def test_a_changed_block_alone_is_made_again(tmp_path: Path, made: list[Any]) -> None:
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1], [2], [3]]))
    made.clear()
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1], [7], [3]]))
    assert made == [1]
    assert version.read()["n"].to_pylist() == [2, 14, 6]


def test_another_setting_adopts_nothing(tmp_path: Path, made: list[Any]) -> None:
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1], [2]]), factor=2)
    made.clear()
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1], [2], [3]]), factor=5)
    assert made == [0, 1, 2]


# -------------------------------------------------------------------------------- stopping, damage


def test_until_stops_before_what_comes_after(tmp_path: Path) -> None:
    """Whether the stage was made just now or before."""
    for _ in range(2):
        flow = workflow(tmp_path, until="double")
        source = double(flow, numbers(flow, [[1]]))
        with pytest.raises(Finished):
            double(flow, source, name="quadruple")
        assert set(flow.folder.current()) == {"numbers", "double"}


def test_a_damaged_input_is_found_before_it_is_read(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1]]))
    path = version.path / "blocks" / "00000.parquet"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    flow = workflow(tmp_path)
    source = double(flow, numbers(flow, [[1]]))
    with pytest.raises(UserError, match=f"{path} differs from its manifest: expected sha256"):
        double(flow, source, name="quadruple")


def test_the_cure_for_damage_works(tmp_path: Path) -> None:
    """Removing the folder, as the message says, makes the stage again."""
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1]]))
    shutil.rmtree(version.path)
    flow = workflow(tmp_path)
    assert double(flow, numbers(flow, [[1]])).manifest == version.manifest


def test_the_cure_for_damage_works_where_an_older_version_has_the_same_file(
    tmp_path: Path, made: list[Any]
) -> None:
    """The two versions' first block is one file under two names, so both are damaged."""
    flow = workflow(tmp_path)
    double(flow, numbers(flow, [[1], [2]]))
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1], [2], [3]]))
    path = version.blocks[0].files["table"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    flow = workflow(tmp_path)
    source = double(flow, numbers(flow, [[1], [2], [3]]))
    with pytest.raises(UserError, match=f"Remove {version.path} to make this stage again"):
        double(flow, source, name="quadruple")
    shutil.rmtree(version.path)
    made.clear()
    flow = workflow(tmp_path)
    again = double(flow, numbers(flow, [[1], [2], [3]]))
    assert made == [0, 2]  # The last one was this version's alone.
    assert again.manifest == version.manifest
    assert double(flow, again, name="quadruple").read()["n"].to_pylist() == [4, 8, 12]


def test_who_was_taken_over_makes_nothing_current(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    flow.folder.claim()
    source = numbers(flow, [[1]])
    RunFolder(flow.folder.path).claim(take_over=True)
    with pytest.raises(Superseded):
        double(flow, source)
    assert set(flow.folder.current()) == {"numbers"}


@pytest.mark.parametrize("way", ["bulk", "small", "files"])
def test_who_was_taken_over_finishes_nothing(tmp_path: Path, way: str) -> None:
    """Also where all is made by then: another process's stage would be taken for finished."""
    flow = workflow(tmp_path)
    flow.folder.claim()
    source = numbers(flow, [[1]])
    finished = double(flow, source).path / "manifest.json"
    finished.unlink()  # Its blocks stay.

    RunFolder(flow.folder.path).claim(take_over=True)
    make = {
        "bulk": lambda: double(flow, source),
        "small": lambda: flow.small("late", {}, list),
        "files": lambda: flow.files("late", {}, [], lambda folder: {}),
    }
    with pytest.raises(Superseded):
        make[way]()
    assert not finished.exists()
    assert list(flow.folder.stages.glob("late-*/manifest.json")) == []


def test_a_user_error_names_no_stage_as_finished(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    source = numbers(flow, [[1], [13]])
    with pytest.raises(UserError, match="13 is unlucky"):
        double(flow, source)
    assert set(flow.folder.current()) == {"numbers"}


# -------------------------------------------------------------------------------- files and times


def test_a_version_of_files(tmp_path: Path) -> None:
    def make(folder: Path) -> dict[str, Any]:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "log.jsonl").touch()
        return {"steps": 3}

    flow = workflow(tmp_path)
    version = flow.files("dual_0", {"recipe": {}}, [], make)
    assert list(version.manifest["sha256"]) == ["model/config.json"]
    assert version.facts == {"steps": 3}
    flow = workflow(tmp_path)
    assert flow.files("dual_0", {"recipe": {}}, [], pytest.fail).digest == version.digest


def test_times_are_kept_beside_the_manifest_and_survive_a_skip(tmp_path: Path) -> None:
    for _ in range(2):
        flow = workflow(tmp_path)
        double(flow, numbers(flow, [[1], [2]]))
        rows = {row["stage"]: row for row in flow.timings()}
        assert rows["double"]["rows"] == 2
        assert sum(rows["double"]["blocks"].values()) == 2
        assert rows["double"]["seconds"] >= 0


def test_what_counts_as_finished_has_its_times_wherever_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last block, or after the manifest."""

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rocketray.workflow.Workflow._after", killed)
        with pytest.raises(KeyboardInterrupt):
            numbers(workflow(tmp_path), [[1], [2]])
    flow = workflow(tmp_path)
    source = numbers(flow, [[1], [2]])
    assert flow.skipped == ["numbers"]
    with monkeypatch.context() as patch:
        patch.setattr("rocketray.workflow._write_timing", killed)
        with pytest.raises(KeyboardInterrupt):
            double(flow, source)
    version = double(flow, source)
    for made in (source, version):
        assert (made.path / "timing.json").is_file(), made.name


def test_a_growing_log_is_followed_to_its_end(tmp_path: Path) -> None:
    log, seen = tmp_path / "log.jsonl", list[dict[str, Any]]()
    with followed(log, seen.append):
        lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"dev": 0.5}]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    assert seen[-1] == {"step": 2, "loss": 1.0}


def test_no_log_is_no_news(tmp_path: Path) -> None:
    with followed(tmp_path / "none.jsonl", pytest.fail):
        pass


# ------------------------------------------------------------------------------- rows left out


def poisoned(folder: Path, limit: int) -> Workflow:
    flow = workflow(folder)
    blocks = flow.recipe.blocks.model_copy(update={"quarantine": limit})
    flow.recipe = flow.recipe.model_copy(update={"blocks": blocks})
    return flow


def kill(flow: Workflow) -> Version:
    """A stage over two blocks, one of which has cost three workers already."""
    spec = Spec(name="kill", stage=Deadly, items=[[1, 666], [2]], unit="passages")
    marks = flow.folder.draft("kill", spec.identity()).path / "attempts"
    marks.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (marks / f"00000-{number}").touch()
    return flow.bulk(spec)[0]


def test_a_higher_limit_goes_on_and_a_lower_one_refuses_what_was_left_out(tmp_path: Path) -> None:
    flow = poisoned(tmp_path, 0)
    with pytest.raises(UserError, match=r"kill: row 666 kills its worker \(SIGKILL\)"):
        kill(flow)
    version = kill(poisoned(tmp_path, 1))
    assert version.read()["n"].to_pylist() == [2, 0, 4]
    assert version.facts == {"numbers": 3, "quarantined": 1}
    with pytest.raises(UserError, match=r"without 1 rows .*quarantine allows 0\. .*manifest\.json"):
        kill(poisoned(tmp_path, 0))


def without(flow: Workflow, table: pa.Table, left_out: list[list[Any]], people: Version) -> Spec:
    """A stage of one block, made without some rows."""
    spec = Spec(name="found", stage=Double, items=[[]], people=people)
    draft = flow.folder.draft("found", spec.identity())
    facts = {"quarantined": left_out}
    commit_block(draft.path, 0, {"table": table}, rows=len(table), key="", facts=facts)
    return spec


def asked(flow: Workflow, *qids: str) -> Version:
    table = pa.table({"qid": list(qids)})
    return flow.small("queries", {"qids": list(qids)}, lambda: [{"table": table}])


def test_what_is_left_out_is_told_with_its_reason_also_by_the_next_run(tmp_path: Path) -> None:
    for _ in range(2):
        flow = poisoned(tmp_path, 1)
        kill(flow)
        assert "  note: kill leaves out row 1, which kills its worker (SIGKILL)\n" in said(flow)


def test_a_question_that_is_left_out_is_told_by_its_id(tmp_path: Path) -> None:
    """The second list of the run is that of the first question."""
    flow = poisoned(tmp_path, 1)
    run = pa.table({"query": pa.array([2, 0], pa.int64())})
    flow.bulk(without(flow, run, [[1, "SIGSEGV"]], asked(flow, "a", "b", "c")))
    note = "found leaves out row 0 of queries (qid 'a'), which kills its worker (SIGSEGV)\n"
    assert note in said(flow)


def test_ten_rows_that_are_left_out_are_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    flow = poisoned(tmp_path, 12)
    table = pa.table({"n": pa.array(range(12), pa.int64())})
    left_out = [[place, "exit code 3"] for place in range(12)]
    flow.bulk(without(flow, table, left_out, asked(flow, *"abcdefghijkl")))
    assert said(flow).count("(exit code 3)\n") == 10
    assert "row 9 of queries (qid 'j')" in said(flow)
    assert "  note: found leaves out 2 more; " in said(flow)


def test_blocks_and_workers_have_their_times(tmp_path: Path) -> None:
    flow = workflow(tmp_path)
    version = double(flow, numbers(flow, [[1], [2], [3]]))
    receipts = [json.loads(p.read_text()) for p in sorted(version.path.glob("receipts/*.json"))]
    seconds = sorted(receipt["about"]["seconds"] for receipt in receipts)
    (row,) = (row for row in flow.timings() if row["stage"] == "double")
    assert row["block_seconds"] == seconds
    assert list(row["blocks"].values()) == [3]
