"""The pool follows the machines: several real Ray nodes in this one. Slow."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from rocketray.artifacts import Draft
from rocketray.engine import cluster, room, training
from rocketray.engine.bulk import Job, run_jobs
from rocketray.errors import UserError
from rocketray.recipe import BulkCluster, Cluster, TrainCluster
from tests.heads import until
from tests.model.training_data import TrainingData
from tests.runs import ALONE, finish, log_of, start, training_log
from tests.toys import Slow, SlowPlaced, begun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own.
    pytest.mark.timeout(900),
]
BLOCKS = 200
ENDLESS = (
    "cluster.bulk.actors=0",
    "cluster.train.workers=2",
    "cluster.train.threads=1",
    "steps.dual_0.epochs=100000",
    "steps.dual_0.evaluations=1",
    "steps.dual_0.checkpoint_every=1000000",
)
"""Training that two workers do for hours."""
ELASTIC = (
    "cluster.bulk.actors=0",
    "cluster.train.workers=2",
    "cluster.train.threads=1",
    "steps.dual_0.epochs=20",
    "steps.dual_0.evaluations=1",
    "steps.dual_0.checkpoint_every=8",
)
"""Long enough to lose a machine in the middle."""
RAY_LOOKS = 25.0
"""Seconds: Ray's coordinator of resources looks at the cluster's machines every 20."""


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """One that holds no work, as cluster.yaml has it."""
    from ray.cluster_utils import Cluster as Nodes

    # Asked for a sign of life each second, and not every three: a node is killed here.
    arguments = {"num_cpus": 0, "_system_config": {"health_check_period_ms": 1000}}
    found = Nodes(initialize_head=True, head_node_args=arguments)
    yield found
    found.shutdown()


@pytest.fixture
def nodes(head: Any) -> Iterator[Any]:
    """The head, and the nodes that a test adds; none of them is there for the next."""
    import ray

    yield head
    ray.shutdown()
    for node in list(head.worker_nodes):
        head.remove_node(node)
    head.wait_for_nodes(timeout=120)  # Until the head knows, also of those that were killed.


def told(nodes: Any, actors: int) -> Cluster:
    bulk = BulkCluster(actors=actors, gpus=False)
    return Cluster(address=nodes.address, bulk=bulk, train=TrainCluster(workers=0))


def slow(folder: Path, **settings: str) -> Job:
    items = [[100 + number] for number in range(BLOCKS)]
    draft = begun(Draft(folder / "slow", "slow", {}))
    return Job(draft, Slow, settings, items, [str(item) for item in items])


def workers(job: Job) -> list[str]:
    """Of the blocks that are done, in no order."""
    return [receipt["about"]["worker"] for receipt in job.draft.receipts().values()]


def test_a_node_comes_and_one_goes(nodes: Any, tmp_path: Path) -> None:
    """The driver is a process of its own, which can be ended in the middle: a thread would outlive
    the Ray it talks to, and nodes are added from the main thread only."""
    hurry = tmp_path / "hurry"
    job, first = slow(tmp_path, hurry=str(hurry)), nodes.add_node(num_cpus=1)
    driver = get_context("spawn").Process(target=run_jobs, args=([job], told(nodes, 2), print))
    driver.start()
    try:
        until(lambda: len(workers(job)) >= 3, "the first node works")
        nodes.add_node(num_cpus=1)
        until(lambda: len(set(workers(job))) == 2, "the second node works, too")
        nodes.remove_node(first, allow_graceful=False)
        hurry.touch()
        driver.join(timeout=200)
        assert driver.exitcode == 0
    finally:
        driver.kill()
        driver.join()
    found = job.draft.finish({}, blocks=BLOCKS).read()["n"].to_pylist()
    assert found == [200 + 2 * number for number in range(BLOCKS)]


def test_without_a_machine_for_work_the_run_stops(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 2.0)
    said: list[str] = []
    asked = "1 bulk worker asks for CPU 1; 1 machine with CPU 0 (0 free) could hold 0"
    with pytest.raises(UserError, match=f"^{re.escape(asked)}, and no autoscaler is there"):
        run_jobs([slow(tmp_path)], told(nodes, 2), pytest.fail, said.append)
    assert said == [f"  waiting 2 s for machines. {asked}."]


def test_training_that_no_machines_can_hold_stops(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, and each of them alone would do for a bulk worker."""
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.0)
    for _ in range(2):
        nodes.add_node(num_cpus=3)
    data = TrainingData(tmp_path / "data")
    job = data.job("dual", tmp_path / "out", data.dual(dropout=0.0))
    for settings, message in [
        ({"workers": 8, "gpus": True},
         "8 training workers ask for CPU 1, GPU 1 each; 3 machines with CPU 6 (6 free), GPU 0 (0"
         " free) could hold 0, and no autoscaler is there to start more: start what fits, or set"
         " fewer cluster.train.workers or cluster.train.gpus=false."),
        ({"workers": 2, "cpus": 4, "gpus": True, "accelerator": "H100"},
         "2 training workers ask for CPU 4, GPU 1, H100 each; 3 machines with CPU 6 (6 free), GPU 0"
         " (0 free), H100 0 (0 free) could hold 0, and no autoscaler is there to start more: start"
         " what fits, or set fewer cluster.train.workers or cluster.train.gpus=false."),
        ({"workers": 8, "min_workers": 7, "gpus": False},
         "7 training workers ask for CPU 1 each; 3 machines with CPU 6 (6 free) could hold 6, and"
         " no autoscaler is there to start more: start what fits, or set fewer"
         " cluster.train.workers."),
    ]:  # fmt: skip
        asked = Cluster(address=nodes.address, train=TrainCluster(**settings))
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            training.fit(job, asked)


@pytest.mark.timeout(1800)  # Two groups of workers are started, one after the other.
def test_elastic_training_goes_on_with_fewer_machines(nodes: Any, tmp_path: Path) -> None:
    """And comes to what one process comes to; sums are added in another order.

    Before the tests that kill a driver that trains: Ray keeps the machines of such a one for three
    minutes, in which elastic training waits.
    """
    first, _ = (nodes.add_node(num_cpus=1) for _ in range(2))
    time.sleep(RAY_LOOKS)  # A group begins with the machines that Ray saw when it last looked.
    out, alone = tmp_path / "run", tmp_path / "alone"
    elastic = ("cluster.train.min_workers=1", f"cluster.address={nodes.address}")
    with start(out, *ELASTIC, *elastic, until="dual_0") as process:
        saved = "stages/dual_0-*/checkpoints/*/state.json"
        until(lambda: any(out.glob(saved)) or process.poll() is not None, "it has saved", 400)
        nodes.remove_node(first, allow_graceful=False)
        assert process.wait(timeout=600) == 0, log_of(out).read_text()[-3000:]
    finish(alone, *ELASTIC, *ALONE, until="dual_0")
    starts = [line["start"] for line in training_log(out, "dual_0") if "start" in line]
    assert [begun["workers"] for begun in starts] == [2, 1]
    assert starts[1]["from_step"] > 0
    mine, theirs = losses(out), losses(alone)
    assert mine.keys() == theirs.keys()
    assert [mine[step] for step in theirs] == pytest.approx([*theirs.values()], rel=1e-4)


def losses(out: Path) -> dict[int, float]:
    """By step; what was done again counts as it came out last."""
    return {line["step"]: line["loss"] for line in training_log(out, "dual_0") if "loss" in line}


def test_a_machine_that_is_to_be_taken_away_is_saved_from(nodes: Any, tmp_path: Path) -> None:
    """Told to Ray as a cloud's notice is; no checkpoint is due for hours.

    The driver is a process of its own, which can be ended in the middle: a thread that trains
    would outlive the Ray it talks to, and take this process down with it.
    """
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    first, _ = (nodes.add_node(num_cpus=1) for _ in range(2))
    out = tmp_path / "run"
    with start(out, *ENDLESS, f"cluster.address={nodes.address}", until="dual_0") as process:

        def logged(what: str) -> bool:
            assert process.poll() is None, log_of(out).read_text()[-3000:]
            return any(what in log.read_text() for log in out.glob("stages/dual_0-*/log.jsonl"))

        until(lambda: logged('"loss"'), "it trains")
        client, deadline = GcsClient(address=nodes.address), int(time.time() + 600) * 1000
        assert client.drain_node(
            first.node_id, DRAIN_NODE_REASON_PREEMPTION, "spot", deadline
        ) == (True, "")  # fmt: skip
        until(lambda: logged('"notice"'), "it is told")
        saved = "stages/dual_0-*/checkpoints/*/state.json"
        until(lambda: any(out.glob(saved)), "it has saved")


def test_an_accelerator_is_found_among_others(nodes: Any, tmp_path: Path) -> None:
    """GPUs that are none: Ray counts what it is told."""
    nodes.add_node(num_cpus=4, num_gpus=4)
    nodes.add_node(num_cpus=4, num_gpus=1, resources={"accelerator_type:H100": 1})
    job = slow(tmp_path)
    job = replace(job, stage=SlowPlaced, items=job.items[:4], keys=job.keys[:4])
    bulk = BulkCluster(actors=4, cpus=2, gpus=True, accelerator="H100")
    asked = Cluster(address=nodes.address, bulk=bulk, train=TrainCluster(workers=0))
    run_jobs([job], asked, lambda receipt: None)
    assert len(set(workers(job))) == 1  # One GPU of the kind: one worker.


def test_a_machine_that_comes_late_is_waited_for(nodes: Any, tmp_path: Path) -> None:
    job = Job(begun(Draft(tmp_path / "one", "one", {})), Slow, {}, [[1]], ["1"])
    run_jobs([job], told(nodes, 2), lambda receipt: None, lambda line: nodes.add_node(num_cpus=1))
    assert list(job.draft.receipts()) == [0]


def test_where_machines_come_when_asked_the_wait_is_heard(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning and again until they are there; and when one is lost."""
    monkeypatch.setattr(room, "PATIENCE", 0.1)
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.1)
    nodes.add_node(num_cpus=1, labels={room.NODE_GROUP: "cpu"})  # As launchers start them.
    cluster.connect(told(nodes, 1))
    both = room.Room("training worker", {"CPU": 1.0}, 2, "nothing")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            nodes.add_node(num_cpus=1)

    def silent() -> bool:
        heard = len(said)
        time.sleep(1)
        return len(said) == heard

    both.wait(told(nodes, 1), say)
    asked = "2 training workers ask for CPU 1 each; 2 machines with CPU 1 (1 free) could hold 1"
    waits = f"  waiting for machines. {asked}."
    assert said[:3] == [waits, *[f"{waits} `ray status` tells what is to come."] * 2]
    assert both.now() == 2
    nodes.remove_node(nodes.worker_nodes.copy().pop())
    until(lambda: both.now() == 1, "one is lost")
    said.clear()
    with both.watched(lambda: True, said.append):
        until(lambda: len(said) >= 2, "said twice")
        assert set(said) == {f"{waits} `ray status` tells what is to come."}
        nodes.add_node(num_cpus=1)
        until(lambda: both.now() == 2, "both have room")
        until(silent, "silence", 30)


def test_kuberay_names_groups_also_without_an_autoscaler(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.add_node(num_cpus=1, labels={room.NODE_GROUP: "workergroup"})
    cluster.connect(told(nodes, 1))
    one = room.Room("bulk worker", {"CPU": 2.0}, 1, "nothing")
    for command, grows in [
        ("ulimit -n 65536; ray start --head  --no-monitor  --block ", True),  # The sidecar scales.
        ("ulimit -n 65536; ray start --head  --block ", False),
        ("ulimit -n 65536; ray start --address=head:6379  --block ", True),  # A worker's knows not.
    ]:
        monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", command)
        assert one.grows() is grows
