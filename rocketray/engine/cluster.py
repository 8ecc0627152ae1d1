"""Starting or joining Ray, and what it has."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocketray import storage
from rocketray.recipe import Cluster

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
