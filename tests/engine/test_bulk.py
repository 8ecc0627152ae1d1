"""Bulk: missing blocks are made, each once; errors of the user surface as such."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from rocketray import loop
from rocketray.artifacts import Draft
from rocketray.engine import bulk, poison, room
from rocketray.engine.bulk import Job, Receipt, run_jobs
from rocketray.engine.cluster import connect
from rocketray.errors import UserError
from rocketray.progress import Display
from rocketray.recipe import BulkCluster, Cluster, TrainCluster
from tests.conftest import SMALLER
from tests.s3 import Node
from tests.toys import Double, Hung, Placed, job

UNLUCKY = r"^numbers\.txt, line 3: 13 is unlucky\.$"
ITEMS = [[1, 2], [3], [], [4, 5, 6]]


@pytest.fixture(autouse=True)
def made() -> list[list[int]]:
    Double.made.clear()
    return Double.made


def draft(folder: Path, name: str = "double") -> Draft:
    return Draft(folder / name, name, {})


def cluster(actors: int, **bulk: Any) -> Cluster:
    told = BulkCluster(**{"actors": actors, "gpus": False, **bulk})
    return Cluster(bulk=told, train=TrainCluster(workers=0))


def run(folder: Path, actors: int = 0) -> list[Receipt]:
    receipts: list[Receipt] = []
    jobs = [job(draft(folder), ITEMS), job(draft(folder, "triple"), ITEMS[:2], factor=3)]
    run_jobs(jobs, cluster(actors), receipts.append)
    return receipts


def content(folder: Path) -> dict[str, object]:
    """Blocks, and receipts but for what never repeats."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found: dict[str, object] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes()
        if path.suffix == ".json":
            found[name] = {**json.loads(path.read_text()), "about": {}}
    return found


def test_every_block_is_made_and_committed(tmp_path: Path) -> None:
    receipts = run(tmp_path)
    keys = [(0, 0, 2), (0, 1, 1), (0, 2, 0), (0, 3, 3), (1, 0, 2), (1, 1, 1)]
    assert [(r.job, r.block, r.rows) for r in receipts] == keys
    assert draft(tmp_path).finish({}, blocks=4).read()["n"].to_pylist() == [2, 4, 6, 8, 10, 12]
    assert draft(tmp_path, "triple").finish({}, blocks=2).read()["n"].to_pylist() == [3, 6, 9]


def test_finished_blocks_are_not_made_again(tmp_path: Path, made: list[list[int]]) -> None:
    run(tmp_path)
    (tmp_path / "double" / "receipts" / "00001.json").unlink()
    (tmp_path / "double" / "blocks" / "00003.parquet").unlink()
    made.clear()
    assert [(r.job, r.block) for r in run(tmp_path)] == [(0, 1), (0, 3)]
    assert made == [[3], [4, 5, 6]]
    assert run(tmp_path) == []


def test_a_user_error_surfaces_and_what_was_done_before_stays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=UNLUCKY):
        run_jobs([job(draft(tmp_path), [[1], [13], [2]])], cluster(0), lambda receipt: None)
    assert list(draft(tmp_path).receipts()) == [0]


def test_a_bug_surfaces_as_itself(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run_jobs([job(draft(tmp_path), [[14]])], cluster(0), lambda receipt: None)


def test_a_machine_that_does_not_see_the_run_folder_makes_nothing(tmp_path: Path) -> None:
    """As a worker elsewhere, where --out is on the driver's own disk."""
    unseen = job(draft(tmp_path), ITEMS)
    unseen.draft.path.rmdir()
    told = bulk.Worker([unseen])({"job": [0], "block": [0]})
    assert told["error"] == [
        f"{socket.gethostname()} does not see {unseen.draft.path}: the run folder must be on"
        " storage that every node sees under one path, or on object storage."
    ]
    assert list(tmp_path.iterdir()) == []


def places(folder: Path, actors: int, gpus: bool | None) -> set[bool | None]:
    """Whether a stage with a model hears that it has a GPU."""
    told = replace(job(draft(folder, f"{gpus}"), ITEMS), stage=Placed)
    run_jobs([told], cluster(actors, gpus=gpus), lambda receipt: None)
    return {receipt["facts"]["gpu"] for receipt in told.draft.receipts().values()}


def test_a_stage_with_a_model_hears_whether_it_may_take_a_gpu(tmp_path: Path) -> None:
    for gpus in (None, True, False):
        assert places(tmp_path, 0, gpus) == {gpus}


def test_no_jobs() -> None:
    run_jobs([], cluster(0), pytest.fail)
    run_jobs([], cluster(2), pytest.fail)


def test_a_pool_is_started_unless_all_work_is_quick(tmp_path: Path) -> None:
    few, many = [[1]] * 3, [[1]] * 33
    for name, items, light, pools in [
        ("light", few, True, 0), ("heavy", few, False, 1), ("long", many, True, 1),
    ]:  # fmt: skip
        with (
            mock.patch.object(Double, "light", light, create=True),
            mock.patch.object(bulk, "_on_ray", return_value=(r for r in ())) as on_ray,
        ):
            run_jobs([job(draft(tmp_path, name), items)], cluster(2), lambda receipt: None)
        assert on_ray.call_count == pools


@pytest.fixture(scope="module")
def ray_stops() -> Iterator[None]:
    """One Ray of four logical CPUs for all tests below."""
    import ray

    connect(cluster(4))
    yield
    ray.shutdown()


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    for mark in (
        pytest.mark.slow,
        pytest.mark.filterwarnings("default"),  # Ray's own.
        pytest.mark.timeout(300),
        pytest.mark.usefixtures("ray_stops"),
    ):
        test = mark(test)
    return test


@on_ray
def test_actors_change_neither_bytes_nor_errors(tmp_path: Path) -> None:
    for actors in (0, 1, 2):
        receipts = run(tmp_path / str(actors), actors)
        assert sorted((r.job, r.block) for r in receipts) == [
            *((0, n) for n in range(4)),
            *((1, n) for n in range(2)),
        ]
    here = content(tmp_path / "0")
    assert len(here) == 12
    assert content(tmp_path / "1") == here
    assert content(tmp_path / "2") == here
    bad = job(draft(tmp_path, "bad"), [[1], [13], [2]])
    with pytest.raises(UserError, match=UNLUCKY):
        run_jobs([bad], cluster(2), lambda receipt: None)


@on_ray
def test_a_bug_on_ray_names_stage_and_block_and_is_not_tried_again(tmp_path: Path) -> None:
    bad = job(draft(tmp_path), [[1], [14]])
    where = r"(?s)Traceback.*in __call__.*RuntimeError: a bug\nIn stage double, block 1, on "
    with pytest.raises(RuntimeError, match=where):
        run_jobs([bad], cluster(2), lambda receipt: None)
    assert not list((tmp_path / "double" / "attempts").iterdir())


@on_ray
def test_a_run_folder_that_workers_do_not_see_ends_the_run(tmp_path: Path) -> None:
    unseen = job(draft(tmp_path), ITEMS)
    unseen.draft.path.rmdir()
    with pytest.raises(UserError, match=r"does not see .*/double: the run folder must be on stor"):
        run_jobs([unseen], cluster(2), pytest.fail)
    assert list(tmp_path.iterdir()) == []


def broken(monkeypatch: pytest.MonkeyPatch, breaks: Callable[[int], bool]) -> None:
    """Ray Data raises where it once did, when a node was lost: asked where a block lies."""
    from ray.data._internal.execution.interfaces import RefBundle

    where, asked = RefBundle.get_preferred_object_locations, itertools.count(1)

    def breaking(bundle: RefBundle) -> object:
        if breaks(next(asked)):
            raise KeyError("a block's place")
        return where(bundle)

    monkeypatch.setattr(RefBundle, "get_preferred_object_locations", breaking)
    monkeypatch.setattr(bulk, "is_here", lambda told: False)  # Only actors are asked for by place.


@on_ray
def test_a_pool_that_ray_breaks_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, lambda asked: asked == 6)
    said, receipts = list[str](), list[Receipt]()
    items = [[n] for n in range(100, 120)]
    run_jobs([job(draft(tmp_path), items)], cluster(1), receipts.append, said.append)
    assert sorted(r.block for r in receipts) == list(range(20))
    assert draft(tmp_path).finish({}, blocks=20).read()["n"].to_pylist() == [
        2 * n for n in range(100, 120)
    ]
    [line] = said
    assert line.startswith('  Ray Data broke (KeyError: "a block\'s place"). A new pool makes the ')


@on_ray
def test_a_pool_that_breaks_without_end_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, lambda asked: True)
    said: list[str] = []
    with pytest.raises(KeyError, match="a block's place"):
        run_jobs([job(draft(tmp_path), ITEMS)], cluster(1), pytest.fail, said.append)
    assert len(said) == bulk.RESTARTS


@on_ray
def test_no_more_workers_than_blocks_and_ray_data_as_it_was(tmp_path: Path) -> None:
    from ray.data import DataContext, TaskPoolStrategy

    before = DataContext.get_current().copy()
    with mock.patch("ray.data.TaskPoolStrategy", side_effect=TaskPoolStrategy) as pools:
        run_jobs([job(draft(tmp_path), ITEMS)], cluster(64), lambda receipt: None)
        run_jobs([job(draft(tmp_path, "few"), [[1]] * 9)], cluster(3), lambda receipt: None)
    assert [call.kwargs for call in pools.call_args_list] == [{"size": 4}, {"size": 3}]
    assert DataContext.get_current() == before
    assert logging.getLogger("ray.data").level != logging.ERROR


@on_ray
def test_processes_live_on_from_pool_to_pool(tmp_path: Path) -> None:
    """Each of two pools makes its blocks in the same process, anew from its own settings."""
    made = []
    for factor in (2, 3):
        told = replace(job(draft(tmp_path, f"by{factor}"), [[1], [5]]), settings={"factor": factor})
        receipts: list[Receipt] = []
        run_jobs([told], cluster(1), receipts.append)
        made.append({receipt.worker for receipt in receipts})
        numbers = told.draft.finish({}, blocks=2).read()["n"].to_pylist()
        assert numbers == [factor, 5 * factor]
    assert made[0] == made[1]
    assert len(made[0]) == 1


def test_a_process_without_blocks_lets_go_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "KEEP_SECONDS", 600.0)
    kept, jobs = bulk.Kept(), [job(draft(tmp_path), ITEMS)]
    first = kept({"job": [0], "block": [0]}, "pool", jobs)
    assert first["error"] == [""]
    assert kept.worker is not None
    monkeypatch.setattr(bulk, "KEEP_SECONDS", 0.05)
    kept({"job": [0], "block": [1]}, "pool", jobs)
    kept.timer.join(60)
    assert kept.worker is None
    again = kept({"job": [0], "block": [2]}, "pool", jobs)
    assert again["block"] == [2]


@on_ray
def test_what_no_machine_can_hold_is_said_at_once(tmp_path: Path) -> None:
    words = r"^1 bulk worker asks for CPU 1, GPU 1; 1 machine with CPU \d+ .*, GPU 0 \(0 free\) co"
    with mock.patch.object(Double, "gpu", True, create=True):
        with pytest.raises(UserError, match=words):
            run_jobs([job(draft(tmp_path), [[1]])], cluster(2, gpus=True), pytest.fail)


@on_ray
def test_a_stage_without_a_model_takes_no_gpu(tmp_path: Path) -> None:
    """There is none here, and the pool does not wait for one."""
    run_jobs([job(draft(tmp_path), [[1]])], cluster(2, gpus=True), lambda receipt: None)
    assert list(draft(tmp_path).receipts()) == [0]


@on_ray
def test_workers_without_a_gpu_hear_so(tmp_path: Path) -> None:
    """Ray hides a machine's GPUs from nobody."""
    assert places(tmp_path, 2, False) == {False}


@on_ray
def test_a_pool_that_waits_says_so(tmp_path: Path) -> None:
    """All CPUs are somebody else's: the pool waits, is heard, and works once there is room."""
    import ray

    said: list[str] = []
    holder = ray.remote(num_cpus=int(ray.cluster_resources()["CPU"]))(Holder).remote()
    ray.get(holder.hold.remote())

    def hear(line: str) -> None:
        said.append(line)
        ray.kill(holder)

    with mock.patch.object(room, "PATIENCE", 1.0):
        run_jobs([job(draft(tmp_path), [[1]])], cluster(1), lambda receipt: None, hear)
    assert said[0].startswith("  no worker has begun yet. 1 bulk worker asks for CPU 1; 1 machine")
    assert "(0 free)" in said[0]
    assert list(draft(tmp_path).receipts()) == [0]


class Holder:
    def hold(self) -> None:
        """Its actor holds what it was given."""


def test_a_worker_that_begins_on_another_node_is_heard_of(on: Node) -> None:
    """Long before its first block is done."""
    jobs = [job(draft(on("driver")), ITEMS)]
    begun = bulk._signs(jobs, len(ITEMS))
    assert not begun()
    with poison.attempt(draft(on("worker")).path, 0, "worker:1"):
        assert begun()


def test_blocks_that_do_not_come_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, jobs = list[str](), [job(draft(tmp_path), ITEMS), job(draft(tmp_path, "triple"), ITEMS)]
    attempts = tmp_path / "double" / "attempts"
    attempts.mkdir()
    (attempts / "00001-aaaaaaaa").write_text("lost-before:7")
    silence = bulk.Silence(jobs, said.append)
    with poison.attempt(tmp_path / "triple", 3, "node-7:41"):
        silence.look()
        assert said == []  # It is not ten minutes yet.
        monkeypatch.setattr(bulk, "SILENCE", 0.0)
        silence.look()
        silence.look()
        assert said == [
            "  no block has come for 0 minutes. Begun: triple block 3 by process 41 on node-7. If"
            " one of these processes hangs, end it (kill -9): another makes its block."
        ]
        silence.end(0.0)
        silence.look()
        assert len(said) == 2
        silence.end(1000.0)
        silence.look()
        assert len(said) == 2  # Five times the longest block.
    silence.longest = 0.0
    silence.look()
    assert len(said) == 2  # Nobody has one.


def test_who_has_just_begun_is_not_taken_for_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine came after an hour; and of two marks of a block the first is of a worker that was
    lost."""
    said, clock = list[str](), [0.0]
    monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    silence = bulk.Silence([job(draft(tmp_path), ITEMS)], said.append)
    clock[0] = 3600.0
    with poison.attempt(tmp_path / "double", 1, "node-1:7"):
        silence.look()
        clock[0] += 30
        with poison.attempt(tmp_path / "double", 1, "node-2:8"):
            silence.look()
            clock[0] += 599
            silence.look()
            assert said == []
            clock[0] += 1
            silence.look()
    assert [re.findall(r"process (\d+)", line) for line in said] == [["8"]]


@on_ray
def test_a_worker_that_hangs_is_named_and_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "SILENCE", 1.0)
    monkeypatch.setattr(bulk, "PATIENCE", 0.5)
    said, once = list[str](), tmp_path / "once"
    hung = replace(job(draft(tmp_path), [[1], [2]]), stage=Hung, settings={"once": str(once)})

    def hear(line: str) -> None:
        while not once.exists():  # It has begun, and is about to hang.
            time.sleep(0.01)
        if not said:  # On a machine that is busy a second may be silent later, too.
            [pid] = re.findall(r"double block \d by process (\d+) on ", line)
            os.kill(int(pid), signal.SIGKILL)
        said.append(line)

    run_jobs([hung], cluster(1), lambda receipt: None, hear)
    assert draft(tmp_path).finish({}, blocks=2).read()["n"].to_pylist() == [2, 4]
    assert re.match(r"  no block has come for \d+ minutes\. Begun: double block ", said[0])


@on_ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_a_run_has_the_same_bytes_with_any_actors_and_any_order(
    actors: int, tiny_half: dict[str, bytes], tmp_path: Path
) -> None:
    """Runs, verdicts and examples of `tiny`, its blocks made in a drawn order."""
    draw = random.Random(actors)

    def shuffled(job: Job) -> list[int]:
        todo = IN_ORDER(job)
        draw.shuffle(todo)
        return todo

    with mock.patch.object(Job, "todo", shuffled):
        assert half_a_run(tmp_path / "run", actors) == tiny_half


IN_ORDER = Job.todo


@pytest.fixture(scope="module")
def tiny_half(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of one process, in order."""
    return half_a_run(tmp_path_factory.mktemp("half") / "run", 0)


def half_a_run(out: Path, actors: int) -> dict[str, bytes]:
    """Everything up to dual_1's examples; the bytes of what must repeat."""
    settings = (*SMALLER, f"cluster.bulk.actors={actors}", "cluster.bulk.gpus=false")
    loop.run("tiny", out, overrides=settings, until="dual_1_examples", display=Display(quiet=True))
    files = [*out.glob("stages/*/blocks/*"), *out.glob("stages/*/manifest.json")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
