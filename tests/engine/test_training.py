"""Training on Ray Train: the number of workers changes nothing but rounding."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rocketray import loop
from rocketray.artifacts import RunFolder
from rocketray.engine import cluster, room, training
from rocketray.errors import UserError
from rocketray.model.job import Job
from rocketray.progress import Display
from rocketray.recipe import Cluster, TrainCluster
from tests.model.training_data import TrainingData

SETTINGS = (
    "steps.dual_0.epochs=15",
    "steps.dual_0.evaluations=1",
    "steps.dual_0.checkpoint_every=100",
    "model.dual.dropout=0.1",
    "cluster.train.threads=1",
    "cluster.bulk.actors=0",
)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    yield
    import ray  # Only now: `connect` tells Ray its environment, which is read at the import.

    ray.shutdown()


def losses(out: Path, workers: int) -> list[float]:
    """The first 50 losses of dual_0."""
    settings = (*SETTINGS, f"cluster.train.workers={workers}")
    loop.run("tiny", out, overrides=settings, until="dual_0", display=Display(quiet=True))
    lines = (out / "logs" / "dual_0.jsonl").read_text().splitlines()
    found = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert len(found) >= 50
    return found[:50]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own.
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_here")
def test_one_worker_two_workers_and_no_ray_give_one_curve(tmp_path: Path) -> None:
    # Two first: this machine's Ray counts as many CPUs as whoever starts it asks for.
    two, one, none = (losses(tmp_path / f"{workers}", workers) for workers in (2, 1, 0))
    assert two == pytest.approx(one, rel=1e-4)
    assert none == pytest.approx(one, rel=1e-4)


def test_training_in_this_process_leaves_a_gpu_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData(tmp_path / "data")
    job = data.job("dual", tmp_path / "out", data.dual())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = TrainCluster(workers=0, gpus=False, threads=1, trackers=())
    assert training.fit(job, Cluster(train=told)).steps == 4


class Refused(Job):
    """A job that the second worker refuses, in the middle of what all workers do together."""

    @property
    def mask_known(self) -> bool:  # type: ignore[override]
        if os.environ.get("RANK") == "1":
            raise UserError("worker 1 will not")
        return True

    @mask_known.setter
    def mask_known(self, value: bool) -> None:
        """A dataclass sets what it is given."""


class Blind(Job):
    """A job whose folder the second worker does not see."""

    @property
    def examples(self) -> Path:  # type: ignore[override]
        seen: Path = self.__dict__["seen"]
        return seen / "nowhere" if os.environ.get("RANK") == "1" else seen

    @examples.setter
    def examples(self, value: Path) -> None:
        self.__dict__["seen"] = value


class Mortal(Job):
    """A job whose worker is killed in the step after its first checkpoint, and after its second."""

    @property
    def checkpoint_every(self) -> int:  # type: ignore[override]
        """The trainer asks after each step."""
        saved, deaths = sorted(self.out.glob("checkpoints/step-*")), self.out / "deaths"
        if "RANK" in os.environ and saved and len([*deaths.glob("*")]) < 2:
            with suppress(FileExistsError):
                (deaths / saved[-1].name).mkdir(parents=True)
                os.kill(os.getpid(), signal.SIGKILL)
        return 1

    @checkpoint_every.setter
    def checkpoint_every(self, value: int) -> None:
        """A dataclass sets what it is given."""


def of_kind(kind: type[Job], job: Job) -> Job:
    return kind(**{name: getattr(job, name) for name in job.__dataclass_fields__})


def model_of(job: Job) -> dict[str, bytes]:
    files = sorted((job.out / "model").rglob("*.safetensors"))
    assert files
    return {path.relative_to(job.out).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own.
@pytest.mark.timeout(600)  # Waiting for the group's own time-out would take half an hour.
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("kind", "retries", "says"),
    [
        (Refused, 0, "worker 1 will not"),  # Ray has no answer then, but an error of its own.
        (Blind, 1, "cannot see .*/examples: the run folder must be on storage"),
        (Job, 1, "was taken over by process"),
    ],
)
def test_a_refusal_ends_all_workers_at_once(
    tmp_path: Path, kind: type[Job], retries: int, says: str
) -> None:
    data = TrainingData(tmp_path / "data")
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    job = data.job("dual", folder.path / "dual_0", data.dual(dropout=0.0), run_folder=folder)
    refused = of_kind(kind, job)
    if kind is Job:
        RunFolder(folder.path).claim(take_over=True)
    workers = TrainCluster(workers=2, threads=1, trackers=(), retries=retries)
    with pytest.raises(UserError, match=says):
        training.fit(refused, Cluster(train=workers))
    # What lies there a group of whoever has taken over would heed.
    assert (job.out / "refused.txt").exists() == (kind is Refused)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own.
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_here")
def test_progress_begins_the_count_of_losses_anew(tmp_path: Path) -> None:
    """Two losses where none is allowed, and the bytes of an undisturbed training."""
    data = TrainingData(tmp_path / "data")
    job = data.job("dual", tmp_path / "mortal", data.dual(dropout=0.0))
    told, said = TrainCluster(workers=1, threads=1, trackers=(), retries=0), list[str]()
    result = training.fit(of_kind(Mortal, job), Cluster(train=told), said.append)
    assert result.steps == 4
    assert [line for line in said if "lost" in line] == [
        f"  training has lost its workers, and goes on from step-0000000{n}." for n in (1, 2)
    ]
    undisturbed = data.job("dual", tmp_path / "undisturbed", data.dual(dropout=0.0))
    alone = TrainCluster(workers=0, threads=1, trackers=())
    assert training.fit(undisturbed, Cluster(train=alone)) == result
    assert model_of(job) == model_of(undisturbed)


@pytest.mark.slow  # Ray is imported.
@pytest.mark.filterwarnings("default")  # Ray's own.
def test_losses_without_progress_are_told_in_a_sentence(tmp_path: Path) -> None:
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    data = TrainingData(tmp_path / "data")
    job = data.job("dual", tmp_path / "out", data.dual(), name="dual_1")
    lost = WorkerHealthCheckFailedError("...", ActorDiedError())
    failure = WorkerGroupError("...", {0: RuntimeError("connection closed"), 1: lost})
    words = r"^dual_1 lost its workers .* save more often \(checkpoint_every, now 100 steps\),"
    assert re.search(words, training._reason(job, failure))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own.
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_here")
def test_there_is_a_worker_for_each_gpu_and_none_where_torch_cannot_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is none: Ray counts what it is told."""
    import ray

    ray.shutdown()
    monkeypatch.setattr(cluster, "_gpus", lambda: 1)
    data = TrainingData(tmp_path / "data")
    job = data.job("dual", tmp_path / "out", data.dual(dropout=0.0))
    told = TrainCluster(threads=1, trackers=())
    with pytest.raises(UserError, match=f"^torch finds no GPU on {socket.gethostname()}, where"):
        training.fit(job, Cluster(train=told))
    assert room.training_workers(told, room.asked_by(told)) == 1
    on_cpus = TrainCluster(gpus=False)
    assert room.training_workers(on_cpus, room.asked_by(on_cpus)) == 2
    ray.shutdown()


@pytest.mark.slow  # Ray is imported.
@pytest.mark.filterwarnings("default")  # Ray's own.
def test_a_group_that_is_begun_anew_heeds_the_refusal(tmp_path: Path) -> None:
    data = TrainingData(tmp_path / "data")
    job = data.job("dual", tmp_path / "out", data.dual())
    job.out.mkdir()
    (job.out / "refused.txt").write_text("worker 1 will not")
    assert training._train_on_worker({"job": job}) == {"error": "worker 1 will not"}
    assert [path.name for path in job.out.iterdir()] == ["refused.txt"]


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_refusal_leaves_the_group_where_others_notice_and_else_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    data, left = TrainingData(tmp_path / "data"), list[str]()
    job = data.job("dual", tmp_path / "out", data.dual())
    monkeypatch.setattr(training.dist, "get_backend", lambda: backend)
    monkeypatch.setattr(training.dist, "destroy_process_group", lambda: left.append(backend))
    if backend == "nccl":
        with pytest.raises(UserError, match=r"^worker 1 will not$"):
            training._refuse(job, UserError("worker 1 will not"))
    else:
        told = training._refuse(job, UserError("worker 1 will not"))
        assert told == {"error": "worker 1 will not"}
    assert left == ["gloo"] * (backend == "gloo")
    assert (job.out / "refused.txt").read_text() == "worker 1 will not"


@pytest.mark.slow  # Ray is imported.
@pytest.mark.filterwarnings("default")  # Ray's own.
def test_a_worker_that_could_not_write_its_refusal_is_heard(tmp_path: Path) -> None:
    from ray.train import TrainingFailedError, WorkerGroupError

    data = TrainingData(tmp_path / "data")
    job = data.job("dual", tmp_path / "out", data.dual())
    broken, refused = RuntimeError("connection closed"), UserError("the store does not answer")
    failure = WorkerGroupError("...", {0: broken, 1: refused})
    assert training._reason(job, failure) == "the store does not answer"
    with pytest.raises(TrainingFailedError):
        training._reason(job, WorkerGroupError("...", {0: broken}))


@pytest.mark.slow  # Ray is imported.
@pytest.mark.filterwarnings("default")  # Ray's own.
def test_the_interface_is_the_one_that_has_the_address() -> None:
    from rocketray.engine.group import interface_of

    assert interface_of("127.0.0.1") in ("lo", "lo0")
    assert interface_of("behind a translation of addresses") is None
