"""Starting or joining Ray, and what it has."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from pathlib import Path

from rocketray.recipe import Cluster


def connect(cluster: Cluster) -> None:
    """Join the job's or the named cluster, or start Ray on this machine. Twice is once."""
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        _prepare_environment()
    import ray  # Only now: Ray reads its environment when it is imported.

    if ray.is_initialized():
        return
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        return
    # Ray counts logical CPUs: a pool larger than the machine must start all the same, or it
    # waits for ever (an actor pool holds its CPUs for the whole stage).
    wanted = max(os.cpu_count() or 1, cluster.train.workers, cluster.bulk.actors or 0)
    ray.init(
        address="local",
        num_cpus=wanted,
        # Without a dashboard Ray Train's cleaner prints an error every second.
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


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
    # faiss-cpu's OpenBLAS does not know recent processors and falls back to SSE, four times
    # slower; naming the AVX-512 core is safe where the processor has it.
    if "avx512f" in _cpu_flags():
        settings["OPENBLAS_CORETYPE"] = "SkylakeX"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def has_gpus() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) > 0)
