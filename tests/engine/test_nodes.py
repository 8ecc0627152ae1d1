"""The pool follows the machines: several real Ray nodes in this one. Slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocketray.artifacts import Draft
from rocketray.engine import cluster
from rocketray.engine.bulk import Job, run_jobs
from rocketray.errors import UserError
from rocketray.recipe import BulkCluster, Cluster, TrainCluster
from tests.toys import Slow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own.
    pytest.mark.timeout(300),
]
BLOCKS = 200


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head that holds no work, as cluster.yaml has it."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    found = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    yield found
    ray.shutdown()
    found.shutdown()


def told(nodes: Any, actors: int) -> Cluster:
    bulk = BulkCluster(actors=actors, gpus=False)
    return Cluster(address=nodes.address, bulk=bulk, train=TrainCluster(workers=0))


def slow(folder: Path) -> Job:
    items = [[100 + number] for number in range(BLOCKS)]
    return Job(Draft(folder / "slow", "slow", {}), Slow, {}, items, [str(item) for item in items])


def workers(job: Job) -> list[str]:
    """Of the blocks that are done, in no order."""
    return [receipt["about"]["worker"] for receipt in job.draft.receipts().values()]


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_node_comes_and_one_goes(nodes: Any, tmp_path: Path) -> None:
    job, errors = slow(tmp_path), list[BaseException]()

    def run() -> None:
        try:
            run_jobs([job], told(nodes, 2), lambda receipt: None)
        except BaseException as error:
            errors.append(error)

    first = nodes.add_node(num_cpus=1)
    thread = threading.Thread(target=run)  # Nodes are added from the main thread only.
    thread.start()
    until(lambda: len(workers(job)) >= 3, "the first node works")
    nodes.add_node(num_cpus=1)
    until(lambda: len(set(workers(job))) == 2, "the second node works, too")
    nodes.remove_node(first, allow_graceful=False)
    thread.join(timeout=200)
    assert not thread.is_alive()
    assert not errors
    found = job.draft.finish({}, blocks=BLOCKS).read()["n"].to_pylist()
    assert found == [200 + 2 * number for number in range(BLOCKS)]


def test_without_a_machine_for_work_the_run_stops(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ROOM_SECONDS", 2.0)
    said: list[str] = []
    message = r"^No machine of the cluster can hold a bulk worker.*asks for CPU 1; 1 machines have"
    with pytest.raises(UserError, match=message):
        run_jobs([slow(tmp_path)], told(nodes, 2), pytest.fail, said.append)
    assert said[0].startswith("  no machine can hold a worker; waiting 2 s.")


def test_a_machine_that_comes_late_is_waited_for(nodes: Any, tmp_path: Path) -> None:
    job = Job(Draft(tmp_path / "one", "one", {}), Slow, {}, [[1]], ["1"])
    run_jobs([job], told(nodes, 2), lambda receipt: None, lambda line: nodes.add_node(num_cpus=1))
    assert list(job.draft.receipts()) == [0]
