"""Training on Ray Train: the same `model.trainer.train`, once per worker.

Ray starts the workers, joins them into a process group and restarts them when one is lost; the
trainer goes on from its own checkpoint (atomic and checked, which Ray's are not).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rocketray import storage
from rocketray.artifacts import Superseded, write_text
from rocketray.engine.cluster import SHARED, connect, sees
from rocketray.engine.metrics import TrainMetrics
from rocketray.engine.room import of_training, training_workers
from rocketray.errors import UserError
from rocketray.model.gather import told_by_workers
from rocketray.model.inference import device
from rocketray.model.job import Job, Result
from rocketray.model.machine import keep_freed_memory
from rocketray.model.trainer import check, train
from rocketray.recipe import Cluster, TrainCluster


def fit(job: Job, cluster: Cluster, say: Callable[[str], None] = print) -> Result:
    """Train one model, on `cluster.train.workers` workers or (0) in this process.

    Ray counts the losses of a whole training, and on spot machines a long one has many: when it
    gives up, and a newer checkpoint has come meanwhile, training is begun anew from there.

    Args:
        say: is told what keeps the workers waiting.

    Raises:
        UserError: training cannot go on and the user can mend it, or no machines of the cluster
            can hold the workers.
    """
    job = replace(job, threads=cluster.train.threads, trackers=cluster.train.trackers)
    check(job)
    if cluster.train.workers == 0:
        job = replace(job, threads=job.threads or os.cpu_count())
        return train(job, device=device(cluster.train.gpus))
    connect(cluster)
    room = of_training(cluster.train)
    workers = training_workers(cluster.train, room.asked)
    if cluster.train.workers is None and room.grows():
        say(
            f"  note: {job.name} takes {workers} workers, for the machines that are there now. Set"
            " cluster.train.workers (and gpus) to have more come."
        )
    room.wait(cluster, say)
    for told in (_refusal(job), _begun(job)):
        storage.remove(told)
    try:
        with room.watched(lambda: storage.fetch(_begun(job)), say):
            answer = _fit_on_ray(job, cluster.train, workers, room.asked, say)
    finally:
        storage.remove(_begun(job))
    if "error" in answer:
        raise UserError(answer["error"])
    return Result(**answer)


def _begun(job: Job) -> Path:
    """There as soon as the workers run."""
    return job.out / "begun.txt"


def _refusal(job: Job) -> Path:
    """Why a worker will not go on: others, and the group Ray restarts, must not try again."""
    return job.out / "refused.txt"


def _fit_on_ray(
    job: Job, told: TrainCluster, workers: int, asked: Mapping[str, float],
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    from ray.train import TrainingFailedError

    while True:
        before = _saved(job)
        try:
            with _ctrl_c_interrupts():
                answer: dict[str, Any] = _trainer(job, told, workers, asked).fit().return_value
            return answer
        except TrainingFailedError as failure:  # No retry is left.
            saved = _saved(job)
            if _refused(job, failure) or saved <= before:
                return {"error": _reason(job, failure)}
            say(f"  {job.name} has lost its workers, and goes on from {saved}.")


def _trainer(job: Job, told: TrainCluster, workers: int, asked: Mapping[str, float]) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from rocketray.engine.group import GroupConfig

    fewest = told.min_workers
    return TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job},
        torch_config=GroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=(fewest, workers) if fewest and fewest < workers else workers,
            use_gpu="GPU" in asked,
            resources_per_worker=dict(asked),
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(Path(job.out).absolute()),
            failure_config=FailureConfig(max_failures=told.retries),
            logging_config=LoggingConfig("ERROR"),
        ),
    )


def _saved(job: Job) -> str:
    """The name of the newest checkpoint that has arrived."""
    names = (path.name for path in storage.entries(job.out / "checkpoints"))
    return max((name for name in names if name.startswith("step-")), default="")


def _reason(job: Job, failure: Exception) -> str:
    """Why training cannot go on. Where that may be a bug, Ray's failure stands."""
    if said := _refused(job, failure):
        return said
    if not any(map(_is_loss, _errors(failure))):
        raise failure
    return (
        f"{job.name} lost its workers again and again, and no checkpoint came in between. The same"
        " command goes on from the last one. Look at the machines' memory, save more often"
        f" (checkpoint_every, now {job.checkpoint_every} steps), or raise cluster.train.retries."
    )


def _refused(job: Job, failure: Exception) -> str:
    """Why a worker refused, where a refusal is what ended training."""
    if storage.fetch(_refusal(job)):
        return _refusal(job).read_text(encoding="utf-8")
    # From where nothing can be written down.
    return next((str(error) for error in _errors(failure) if isinstance(error, UserError)), "")


def _errors(failure: Exception) -> list[Exception]:
    """What ended the workers, or what ended Ray's work on them."""
    of_workers = getattr(failure, "worker_failures", {}).values()
    return [*of_workers, getattr(failure, "controller_failure", failure)]


def _is_loss(error: Exception) -> bool:
    """A worker's process or machine is gone."""
    from ray.exceptions import RayActorError

    return isinstance(getattr(error, "health_check_failure", error), RayActorError)


@contextmanager
def _ctrl_c_interrupts() -> Iterator[None]:
    """Ray Train answers Ctrl-C by ending the process with code 0, as if all were done, and leaves
    its handler in place. Here an interrupt is an interrupt, and the handler stays the caller's."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray leaves signals alone there.
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGINT, handler)


def _cores() -> int:
    """Those this process may use; all of them where the system (macOS) does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _train_on_worker(config: dict[str, Any]) -> dict[str, Any]:
    from ray.train import get_context
    from ray.train.torch import get_device

    job: Job = config["job"]
    if blind := _blind(job):
        return {"error": f"{', '.join(blind)} cannot see {job.examples}: {SHARED}"}
    if storage.fetch(_refusal(job)):
        return {"error": _refusal(job).read_text(encoding="utf-8")}
    if get_context().get_world_rank() == 0:
        write_text(_begun(job), socket.gethostname())
    if job.threads is None:  # This machine's cores, shared with the workers beside this one.
        beside = get_context().get_local_world_size()
        job = replace(job, threads=max(1, _cores() // beside))
    try:
        told = TrainMetrics(job.name) if get_context().get_world_rank() == 0 else None
        device = get_device()
        if device.type == "cpu":
            keep_freed_memory()  # This process ends with its training.
        return asdict(train(job, device=device, on_step=told, leaving=_leaving))
    except Superseded as error:  # All workers stop with it, in a folder that is another's by now.
        return {"error": str(error)}
    except UserError as error:
        return _refuse(job, error)


def _refuse(job: Job, error: UserError) -> dict[str, Any]:
    """Ours to explain, not Ray's to retry. Where this worker alone refuses, the others wait for it
    in a collective, and that has to end."""
    write_text(_refusal(job), str(error))
    # With NCCL a group cannot be left: the others would wait until its time-out, half an hour. So
    # Ray hears of it, and ends all workers; those that it starts again heed what is written.
    if dist.get_backend() == "nccl":
        raise error
    dist.destroy_process_group()
    return {"error": str(error)}


def _blind(job: Job) -> list[str]:
    """The hosts that do not see the run folder. They cannot write a refusal there, and what they
    raise Ray retries: so all workers are told, and all stop."""
    told = told_by_workers("" if sees(job.examples) else socket.gethostname())
    return sorted({host for host in told if host})


def _leaving() -> bool:
    """A cloud's notice to one of the workers' machines, as Ray passes it on."""
    from ray.train import get_preemption_info

    return get_preemption_info() is not None
