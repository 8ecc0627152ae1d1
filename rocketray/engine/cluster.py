"""Starting or joining Ray, and what it has."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rocketray.errors import UserError
from rocketray.recipe import Cluster

ROOM_SECONDS = 60.0
"""How long a cluster without a fitting machine is given, where no autoscaler is known."""
NODE_GROUP = "ray.io/node-group"


def connect(cluster: Cluster) -> None:
    """Join the job's or the named cluster, or start Ray on this machine. Twice is once."""
    address = _address(cluster)
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


def _address(cluster: Cluster) -> str | None:
    """Of a cluster to join; none for Ray on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS")


def is_here(cluster: Cluster) -> bool:
    """Whether it is this process's own Ray, on this machine alone."""
    return not _address(cluster)


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


def has_gpus() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) > 0)


@dataclass(frozen=True)
class Room:
    """What one worker asks for, and the machines that could hold it."""

    asked: Mapping[str, float]
    """Such as CPU 1, GPU 1."""

    def now(self) -> int:
        """How many such workers the machines that are there could hold, were they idle."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(int(has.get(name, 0) // need) for name, need in self.asked.items()) for has in alive
        )

    def grows(self) -> bool:
        """Whether machines come when they are asked for. Nodes that a cluster launcher or KubeRay
        started name their group; Ray has no public word on whether an autoscaler runs."""
        import ray

        return any(node["Alive"] and node["Labels"].get(NODE_GROUP) for node in ray.nodes())

    def wait(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        """Return once a worker could be placed, or an autoscaler is there to make place.

        Raises:
            UserError: after `ROOM_SECONDS` (at once on this machine's own Ray) nothing can.
        """
        patience = ROOM_SECONDS if _address(cluster) else 0.0
        deadline = time.monotonic() + patience
        while not (self.now() or self.grows()):
            if time.monotonic() >= deadline:
                raise UserError(
                    f"No machine of the cluster can hold a bulk worker, and none is going to come."
                    f" {self} Set cluster.bulk.gpus=false, or start a machine that fits."
                )
            if patience:
                say(f"  no machine can hold a worker; waiting {patience:.0f} s. {self}")
                patience = 0.0
            time.sleep(1)

    def __str__(self) -> str:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        free = ray.available_resources()
        there = ", ".join(
            f"{name} {sum(has.get(name, 0) for has in nodes):g} ({free.get(name, 0):g} free)"
            for name in self.asked
        )
        asked = ", ".join(f"{name} {need:g}" for name, need in self.asked.items())
        return f"A worker asks for {asked}; {len(nodes)} machines have {there}."
