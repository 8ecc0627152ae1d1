"""Starting or joining Ray, and what it has."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocketray import storage
from rocketray.errors import UserError
from rocketray.recipe import Cluster, Reserved

ROOM_SECONDS = 60.0
"""How long a cluster without a fitting machine is given, where no autoscaler is known."""
PATIENCE = 60.0
"""Seconds without a sign of work, after which a person is told what it waits for."""
NODE_GROUP = "ray.io/node-group"
TYPE = "accelerator_type:"
"""Begins the resource of which a machine with GPUs of some type has one, whatever their number."""
SHARED = (
    "the run folder must be on storage that every node sees under one path, or on object storage."
)
"""The cure where a machine does not see it."""


def connect(cluster: Cluster) -> None:
    """Join the job's or the named cluster, or start Ray on this machine. Twice is once."""
    address = _address(cluster)
    if not address:
        _prepare_environment()
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # Of what Ray says itself: logs are files.
    import ray  # Only now: Ray reads its environment when it is imported.

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    with _sigterm_stays():
        if address:
            ray.init(address=address, **quiet)
            return
        ray.init(
            address="local",
            num_cpus=_logical_cpus(cluster),
            # Ray would count those that a driver tells of, and a Mac's, also where this torch can
            # use none of them.
            num_gpus=_gpus(),
            # Without a dashboard Ray Train's cleaner prints an error every second.
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            **quiet,
        )


@contextmanager
def _sigterm_stays() -> Iterator[None]:
    """Ray takes SIGTERM (`ray job stop` sends it) to exit without a word. It stays with whoever
    had it: the command line, which lets go of the run's folder and says how to go on."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _logical_cpus(cluster: Cluster) -> int:
    """Those that this machine's own Ray counts: a pool larger than the machine must start all the
    same, or it waits for ever (an actor pool holds its CPUs for the whole stage)."""
    train = cluster.train.workers_on(0) * cluster.train.cpus
    return max(os.cpu_count() or 1, train, (cluster.bulk.actors or 1) * cluster.bulk.cpus)


def _gpus() -> int:
    """Those of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _address(cluster: Cluster) -> str | None:
    """Of a cluster to join; none for Ray on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS")


def is_here(cluster: Cluster) -> bool:
    """Whether it is this process's own Ray, on this machine alone."""
    return not _address(cluster)


def sees(folder: Path) -> bool:
    """Whether this machine sees a folder that whoever began the stage has made."""
    return storage.mirrored(folder) or folder.is_dir()


def job_has_ended(job: str) -> bool:
    """Whether a job of this process's cluster, `submission id@address`, is known to have ended."""
    name, _, address = job.partition("@")
    if not address or address != os.environ.get("RAY_ADDRESS"):
        return False  # Of another cluster, or of one that was started anew: nobody to ask.
    from ray.job_submission import JobSubmissionClient

    try:
        return bool(JobSubmissionClient(address).get_job_status(name).is_terminal())
    except (RuntimeError, OSError):  # Forgotten, or no answer.
        return False


def _prepare_environment() -> None:
    """What this process's Ray, and the processes of a local cluster, find when they start."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray Train polls its workers; at its default of 2 s every start and end costs that much.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # A token of this run alone: Ray would otherwise leave a readable one in the home folder.
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def asked_by(told: Reserved) -> dict[str, float]:
    """Ray's resources of one worker, such as CPU 1, GPU 1."""
    import ray

    asked: dict[str, float] = {"CPU": told.cpus}
    if told.gpus or (told.gpus is None and ray.cluster_resources().get("GPU", 0) > 0):
        asked["GPU"] = 1
    if told.accelerator:
        asked[TYPE + told.accelerator] = 0.001
    return asked


@dataclass(frozen=True)
class Room:
    """What some workers ask for, and the machines that could hold them."""

    who: str
    """What people call one of them."""
    asked: Mapping[str, float]
    """By one of them, such as CPU 1, GPU 1."""
    workers: int
    """So many must find room before any of them begins."""
    cure: str
    """What in the recipe asks for less."""

    def now(self) -> int:
        """How many of them the machines that are there could hold, were they idle."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(int(has.get(name, 0) // need) for name, need in self.asked.items()) for has in alive
        )

    def grows(self) -> bool:
        """Whether machines come when they are asked for. Ray has no public word on whether an
        autoscaler runs: nodes that its cluster launcher starts name their group. So do KubeRay's,
        also without one; there the head's own command tells whether it left that to a sidecar."""
        import ray

        command = os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
        if "--head" in command and "--no-monitor" not in command:
            return False
        return any(node["Alive"] and node["Labels"].get(NODE_GROUP) for node in ray.nodes())

    def wait(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        """Return once the workers could be placed, or an autoscaler is there to make place.

        Raises:
            UserError: after `ROOM_SECONDS` (at once on this machine's own Ray) nothing can.
        """
        patience = 0.0 if is_here(cluster) else ROOM_SECONDS
        deadline = time.monotonic() + patience
        while self.now() < self.workers:
            if self.grows():
                say(f"  waiting for machines. {self}.")
                return
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{self}, and no autoscaler is there to start more: start what fits, or set"
                    f" {self.cure}."
                )
            if patience:
                say(f"  waiting {patience:.0f} s for machines. {self}.")
                patience = 0.0
            time.sleep(1)

    @contextmanager
    def watched(self, begun: Callable[[], bool], say: Callable[[str], None]) -> Iterator[None]:
        """Say, once a minute, what the work inside waits for: until it has begun, and whenever the
        machines that are left could not hold it."""
        stop = threading.Event()

        def watch() -> None:
            started = False
            while not stop.wait(PATIENCE):
                with suppress(UserError):  # A store that does not answer: the work will say so.
                    started = started or begun()
                if self.now() < self.workers:
                    say(f"  waiting for machines. {self}. `ray status` tells what is to come.")
                elif not started:
                    say(f"  no worker has begun yet. {self}.")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def __str__(self) -> str:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        free = ray.available_resources()
        each, there = [], []
        for name, need in self.asked.items():
            short, all_of_it = name.removeprefix(TYPE), sum(has.get(name, 0) for has in nodes)
            each.append(short if name.startswith(TYPE) else f"{short} {need:g}")
            there.append(f"{short} {all_of_it:g} ({free.get(name, 0):g} free)")
        many, machines = self.workers != 1, f"machine{'s' * (len(nodes) != 1)}"
        asks = f"{self.workers} {self.who}{'s' * many} ask{'s' * (not many)} for {', '.join(each)}"
        found = f"{len(nodes)} {machines} with {', '.join(there)} could hold {self.now()}"
        return f"{asks}{' each' * many}; {found}"
