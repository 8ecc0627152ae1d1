"""Rows that kill their process: suspected after three lost workers, found, left out or refused."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rocketray import storage
from rocketray.artifacts import Draft, Made, Version, commit_block
from rocketray.engine import poison
from rocketray.engine.bulk import Job, Receipt, run_jobs
from rocketray.engine.poison import Death, culprits
from rocketray.errors import UserError
from rocketray.formats import Cut, Source, cut
from rocketray.recipe import BulkCluster, Cluster, TrainCluster
from rocketray.schema import PASSAGES, QUERIES
from tests import s3
from tests.s3 import Node
from tests.toys import Deadly, Double, begun, deadly

ALONE = Cluster(bulk=BulkCluster(actors=0), train=TrainCluster(workers=0))
HOW = Death("SIGKILL")


def draft(folder: Path) -> Draft:
    return Draft(folder / "deadly-1", "deadly", {})


def suspected(folder: Path, block: int = 0, lost: int = poison.ATTEMPTS) -> None:
    """What workers that were killed over a block have left."""
    marks = folder / "deadly-1" / "attempts"
    marks.mkdir(parents=True)
    for number in range(lost):
        (marks / f"{block:05d}-{number}").touch()


def made(job: Job) -> list[int]:
    run_jobs([job], ALONE, lambda receipt: None)
    numbers: list[int] = job.draft.finish({}).read()["n"].to_pylist()
    return numbers


def receipt(folder: Path, block: int = 0) -> dict[str, object]:
    path = folder / "deadly-1" / "receipts" / f"{block:05d}.json"
    found: dict[str, object] = json.loads(path.read_text())
    return found


# ------------------------------------------------------------------------------------ the search


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_culprits_are_found(seed: int) -> None:
    draw = random.Random(seed)
    rows = np.sort(draw.sample(range(10**6), draw.randint(1, 300)))
    bad = set(draw.sample(rows.tolist(), draw.randint(1, min(4, len(rows)))))
    tried: list[int] = []

    def kills(some: np.ndarray) -> Death | None:
        tried.append(len(some))
        return HOW if bad & set(some.tolist()) else None

    assert [row for row, _ in culprits(rows, HOW, kills)] == sorted(bad)
    assert len(tried) <= 2 * len(bad) * int(np.ceil(np.log2(max(2, len(rows)))))


def test_rows_that_kill_only_together_are_not_blamed() -> None:
    rows = np.arange(8)
    assert list(culprits(rows, HOW, lambda some: HOW if len(some) > 3 else None)) == []


# --------------------------------------------------------------------------------- with children


def test_a_poison_row_stops_the_run_and_is_named(tmp_path: Path) -> None:
    suspected(tmp_path)
    message = (
        r"^deadly: row 666 kills its worker \(SIGKILL\), also alone in a process of its own\."
        r" Remove it from the data, or let blocks\.quarantine \(now 0\) rows of a stage be left out"
    )
    with pytest.raises(UserError, match=message):
        made(deadly(draft(tmp_path), [[1, 666]]))
    assert not list((tmp_path / "deadly-1" / "receipts").glob("*"))


def test_within_the_limit_the_rest_is_made(tmp_path: Path) -> None:
    suspected(tmp_path, block=1)
    job = deadly(draft(tmp_path), [[1, 2], [3, 666]], quarantine=1)
    assert made(job) == [2, 4, 6, 0]
    version = Version.open(tmp_path / "deadly-1")
    assert [block.facts.get("quarantined") for block in version.blocks] == [None, [[1, "SIGKILL"]]]
    assert [block.left_out for block in version.blocks] == [[], [(1, "SIGKILL")]]
    assert version.left_out.tolist() == [3]
    assert [block.rows for block in version.blocks] == [2, 2]
    assert not (tmp_path / "deadly-1" / "attempts").exists()


def test_an_adopted_block_takes_its_places_along(tmp_path: Path) -> None:
    """What was row 3 is row 1 of a version that begins with this block."""
    suspected(tmp_path, block=1)
    made(deadly(draft(tmp_path), [[1, 2], [3, 666]], quarantine=1))
    other = Draft(tmp_path / "deadly-2", "deadly", {})
    assert other.adopt({0: "[3, 666]"}) == 1
    assert other.finish({}, blocks=1).left_out.tolist() == [1]


def test_the_limit_is_the_stages_not_the_blocks(tmp_path: Path) -> None:
    """A row left out before counts."""
    table = pa.table({"n": pa.array([0], pa.int64())})
    facts = {"quarantined": [[0, "SIGSEGV"]]}
    commit_block(tmp_path / "deadly-1", 0, {"table": table}, rows=1, key="", facts=facts)
    suspected(tmp_path, block=1)
    with pytest.raises(UserError, match=r"row 666 kills .* blocks\.quarantine \(now 1\)"):
        made(deadly(draft(tmp_path), [[7], [666]], quarantine=1))


def test_lost_machines_blame_no_row(tmp_path: Path) -> None:
    suspected(tmp_path)
    assert made(deadly(draft(tmp_path), [[1, 2]])) == [2, 4]
    assert receipt(tmp_path)["facts"] == {"numbers": 2}
    about = receipt(tmp_path)["about"]
    assert isinstance(about, dict)
    assert about["attempts"] == 4


def test_the_receipt_counts_attempts_and_the_manifest_does_not(tmp_path: Path) -> None:
    suspected(tmp_path, lost=2)
    made(deadly(draft(tmp_path), [[1], [2]]))
    attempts = [receipt(tmp_path, block)["about"]["attempts"] for block in (0, 1)]  # type: ignore[index]
    assert attempts == [3, 1]
    assert "attempts" not in (tmp_path / "deadly-1" / "manifest.json").read_text()


class Whole(Double):
    """Cannot leave rows out."""

    def __init__(self, *, kills: int) -> None:
        super().__init__()

    def __call__(self, item: list[int]) -> Made:
        return Deadly(kills=666)(item)


class Reading(Double):
    """Is killed by whatever it reads. Cannot leave rows out."""

    def __call__(self, item: Cut) -> Made:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_block_of_a_file_is_named_by_its_file_and_lines(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("one\n\ntwo\nthree\nfour\n")
    cuts = cut(Source(tmp_path / "corpus.txt", "txt"), 2, tmp_path)
    suspected(tmp_path, block=1)
    job = Job(begun(draft(tmp_path)), Reading, {}, cuts, ["a", "b"])
    message = (
        r"^deadly: block 1 \(\S+corpus\.txt, 2 rows from line 4\) kills its worker \(SIGKILL\),"
        r" .* and this stage cannot leave rows out; look at its rows, and at the machine's memory"
    )
    commit_block(job.draft.path, 0, {}, rows=2, key="a", facts={})
    with pytest.raises(UserError, match=message):
        made(job)


@pytest.mark.parametrize(
    ("stage", "settings", "why"),
    [
        (Deadly, {"crowd": 3}, "no single row does it; look at the machine's memory"),
        (Deadly, {"kills": -1}, "it dies before it has seen a row"),
        (Whole, {"kills": 666}, "this stage cannot leave rows out"),
    ],
)
def test_where_no_row_can_be_blamed(
    tmp_path: Path, stage: type[Double], settings: dict[str, int], why: str
) -> None:
    suspected(tmp_path)
    numbers = [1, 666] if stage is Whole else [1, 2, 3]
    with pytest.raises(UserError, match=rf"block 0 kills its worker \(SIGKILL\).* and {why}"):
        made(deadly(draft(tmp_path), [numbers], 5, stage, **settings))


def test_errors_of_a_child_are_the_stages(tmp_path: Path) -> None:
    suspected(tmp_path)
    with pytest.raises(UserError, match=r"^numbers\.txt, line 3: 13 is unlucky\.$"):
        made(deadly(draft(tmp_path), [[13]]))
    with pytest.raises(RuntimeError, match=r"(?s)in __call__.*RuntimeError: a bug"):
        made(deadly(draft(tmp_path), [[14]]))


@pytest.mark.parametrize("count", [1, 1_000_000])
def test_a_child_that_cannot_import_what_it_needs_blames_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """It ends before it reads its job: one that fits into the pipe, or one that does not."""
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    suspected(tmp_path)
    with pytest.raises(RuntimeError, match=r"Deadly'> did not start \(exit code 3\)\."):
        made(deadly(draft(tmp_path), [list(range(count))]))


def test_a_row_has_its_id(tmp_path: Path) -> None:
    columns = [[["a", "b"], ["c"]], [["", ""], [""]], [["x", "y"], ["z"]]]
    for number in (0, 1):
        block = pa.table([pa.array(column[number]) for column in columns], schema=PASSAGES)
        commit_block(
            tmp_path / "passages", number, {"table": block}, rows=len(block), key="", facts={}
        )
    people = Draft(tmp_path / "passages", "passages", {}).finish({}).path
    suspected(tmp_path)
    job = replace(deadly(draft(tmp_path), [[2]], kills=2), people=str(people))
    with pytest.raises(UserError, match=r"^deadly: row 2 of passages \(pid 'c'\) kills"):
        made(job)


def test_a_question_of_a_file_has_that_files_id(tmp_path: Path) -> None:
    columns = [["log.txt:1", "log.txt:2"], ["who", "what"], [False] * 2, [[]] * 2]
    asked = pa.table([pa.array(column) for column in columns], names=QUERIES.names).cast(QUERIES)
    commit_block(tmp_path / "log_texts", 0, {"table": asked}, rows=2, key="", facts={})
    people = Draft(tmp_path / "log_texts", "log_texts", {}).finish({}).path
    suspected(tmp_path)
    job = replace(deadly(draft(tmp_path), [[1]], kills=1), people=str(people))
    with pytest.raises(UserError, match=r"^deadly: row 1 of log_texts \(qid 'log\.txt:2'\) kills"):
        made(job)


def test_when_every_attempt_is_killed_from_outside_somebody_is_asked(tmp_path: Path) -> None:
    suspected(tmp_path, lost=poison.LAST_ATTEMPT)
    job = deadly(draft(tmp_path), [[1]])
    with pytest.raises(UserError, match=r"block 0 was begun 12 times, .* tries again"):
        made(job)
    assert made(job) == [2]


# ----------------------------------------------------------------------------- on object storage


def lost_on(run: Path, block: int = 0) -> ExitStack:
    """A machine that goes down over a block: its attempt never ends."""
    attempt = ExitStack()
    attempt.enter_context(poison.attempt(draft(run).path, block, "lost:1"))
    return attempt


def test_attempts_are_counted_over_all_nodes(on: Node) -> None:
    """Each machine that comes for a lost one knows what became of those before."""
    lost = [lost_on(on(f"machine-{number}")) for number in range(poison.ATTEMPTS)]
    other = lost_on(on("another"), block=1)
    with pytest.raises(UserError, match="row 666 kills its worker"):
        made(deadly(draft(on("last")), [[666], [1]]))
    marks = [path.name[:5] for path in storage.files(draft(on("driver")).path)]
    assert marks == ["00000"] * poison.ATTEMPTS + ["00001"]  # The last one took its own away.
    job = deadly(draft(on("last")), [[666], [1]], quarantine=1)
    assert made(job) == [0, 2]
    assert not [path for path in storage.files(job.draft.path) if path.parent.name == "attempts"]
    for attempt in (*lost, other):
        attempt.close()


def test_when_every_machine_is_killed_somebody_is_asked(on: Node) -> None:
    lost = [lost_on(on(f"machine-{number}")) for number in range(poison.LAST_ATTEMPT)]
    job = deadly(draft(on("last")), [[1]])
    with pytest.raises(UserError, match=r"block 0 was begun 12 times, .* tries again"):
        made(job)
    assert made(job) == [2]
    for attempt in lost:
        attempt.close()


def test_what_an_attempt_costs(on: Node, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of docs/storage.md: a list, a put and a delete."""
    with s3.proxy(s3_server) as (endpoint, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with poison.attempt(draft(on("a")).path, 0, "a:1"):
            assert proxy.seen == {"GET": 1, "PUT": 1}
        assert proxy.seen == {"GET": 1, "PUT": 1, "POST": 1}


# ----------------------------------------------------------------------------------------- on Ray


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own.
@pytest.mark.timeout(300)
def test_on_ray_a_poison_row_ends_the_run_and_not_the_patience(tmp_path: Path) -> None:
    import ray

    cluster = Cluster(bulk=BulkCluster(actors=2, gpus=False), train=TrainCluster(workers=0))
    items: list[list[int]] = [[1, 2], [3, 666, 4], [5], [6]]

    def run(quarantine: int) -> Sequence[Receipt]:
        receipts: list[Receipt] = []
        run_jobs([deadly(draft(tmp_path), items, quarantine)], cluster, receipts.append)
        return receipts

    try:
        with pytest.raises(UserError, match="row 666 kills its worker"):
            run(0)
        run(1)
        version = draft(tmp_path).finish({}, blocks=4)
        assert version.read()["n"].to_pylist() == [2, 4, 6, 0, 8, 10, 12]
        assert version.blocks[1].left_out == [(1, "SIGKILL")]
        about = receipt(tmp_path, 1)["about"]
        assert isinstance(about, dict)
        assert about["attempts"] == poison.ATTEMPTS + 1
    finally:
        ray.shutdown()
