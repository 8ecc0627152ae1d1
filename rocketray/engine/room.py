"""What workers ask of a cluster, and whether its machines can ever hold them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rocketray.engine.cluster import connect, is_here
from rocketray.errors import UserError
from rocketray.meanwhile import meanwhile
from rocketray.recipe import BulkCluster, Cluster, Reserved, TrainCluster

ROOM_SECONDS = 45.0
"""How long a cluster without a fitting machine is given, where no autoscaler is known."""
LOOK_SECONDS = 5.0
"""Between two looks at what an autoscaler has written down: as often as it writes."""
REFUSALS = 4
"""Looks in a row at which it sees no way: one may come before a machine that has just ended."""
PATIENCE = 60.0
"""Seconds without a sign of work, after which a person is told what it waits for."""
NODE_GROUP = "ray.io/node-group"
TYPE = "accelerator_type:"
"""Begins the resource of which a machine with GPUs of some type has one, whatever their number."""


def check(cluster: Cluster, say: Callable[[str], None]) -> None:
    """Before the first stage: on a cluster without an autoscaler, what its machines cannot hold is
    refused now, and not after hours of other work. One with an autoscaler is not asked for GPUs
    that would idle until then.

    Raises:
        UserError: training or bulk workers find no room.
    """
    if is_here(cluster):
        return
    connect(cluster)
    rooms = []
    if cluster.train.workers != 0:
        rooms.append(of_training(cluster.train))
    if cluster.bulk.actors != 0:
        rooms.append(of_bulk(cluster.bulk, models=True))
    for room in rooms:
        if not room.grows():
            room.wait(cluster, say)


def of_training(told: TrainCluster) -> Room:
    """What the workers of a training ask for: all at once, or the fewest that it goes on with."""
    asked = asked_by(told)
    on_cpus = " or cluster.train.gpus=false" if "GPU" in asked else ""
    cure = f"fewer cluster.train.workers{on_cpus}"
    return Room("training worker", asked, told.min_workers or training_workers(told, asked), cure)


def training_workers(told: TrainCluster, asked: Mapping[str, float]) -> int:
    """How many: as many as find a GPU now, where nobody says."""
    return told.workers_on(held(asked) if "GPU" in asked else 0)


def of_bulk(told: BulkCluster, *, models: bool) -> Room:
    """What one bulk worker asks for: a stage goes on with one. GPUs are for stages with models."""
    asked = asked_by(told)
    if not models:
        asked = {"CPU": asked["CPU"]}
    cure = "cluster.bulk.gpus=false" if "GPU" in asked else "cluster.bulk.actors=0"
    return Room("bulk worker", asked, 1, cure)


def asked_by(told: Reserved) -> dict[str, float]:
    """Ray's resources of one worker, such as CPU 1, GPU 1."""
    import ray

    asked: dict[str, float] = {"CPU": told.cpus}
    if told.gpus or (told.gpus is None and ray.cluster_resources().get("GPU", 0) > 0):
        asked["GPU"] = 1
    if told.accelerator:
        asked[TYPE + told.accelerator] = 0.001
    return asked


def held(asked: Mapping[str, float]) -> int:
    """How many workers that ask for this the machines that are there could hold, were they idle."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(has.get(name, 0) // need) for name, need in asked.items()) for has in alive)


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
        return held(self.asked)

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
        """Return once the machines that are there could hold the workers.

        Raises:
            UserError: they never could. Without an autoscaler that is known after `ROOM_SECONDS`,
                on this machine's own Ray at once; with one, as soon as it says so.
        """
        patience = 0.0 if is_here(cluster) else ROOM_SECONDS
        deadline = time.monotonic() + patience
        while self.now() < self.workers:
            if self.grows():
                say(f"  waiting for machines. {self}.")
                self._grow(say)
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

    def _grow(self, say: Callable[[str], None]) -> None:
        """Ask for all the workers' places at once, and let them go when the machines are there.

        Left to those who start the workers, Ray Train would ask anew each minute, and nobody would
        hear that no machine can come.
        """
        from ray.util import placement_group, remove_placement_group

        places = placement_group([dict(self.asked)] * self.workers)
        spoken, refusals = time.monotonic(), 0
        try:
            while not places.wait(LOOK_SECONDS):
                state = autoscaling()
                refused = any(
                    places.id.hex() in gang.details
                    for gang in state.infeasible_gang_resource_requests
                )
                refusals = refusals + 1 if refused and self._alone() else 0
                if refusals == REFUSALS:
                    raise UserError(
                        f"{self}, and the autoscaler can bring no more: no node type is large"
                        f" enough, or max_workers is reached. Set {self.cure}, or change the"
                        " cluster's configuration."
                    )
                if time.monotonic() - spoken >= PATIENCE:
                    spoken = time.monotonic()
                    say(f"  waiting for machines. {self}. {hindrance(state)}")
        finally:
            remove_placement_group(places)

    def _alone(self) -> bool:
        """Whether nobody works on the machines that are there: what others hold comes free."""
        import ray

        every, free = ray.cluster_resources(), ray.available_resources()
        return all(free.get(name, 0) >= every.get(name, 0) for name in self.asked)

    @contextmanager
    def watched(self, begun: Callable[[], bool], say: Callable[[str], None]) -> Iterator[None]:
        """Say, once a minute, what the work inside waits for: until it has begun, and whenever the
        machines that are left could not hold it."""
        started = False

        def look() -> None:
            nonlocal started
            with suppress(UserError):  # A store that does not answer: the work will say so.
                started = started or begun()
            if self.now() < self.workers:
                say(f"  waiting for machines. {self}. {hindrance(autoscaling())}")
            elif not started:
                say(f"  no worker has begun yet. {self}.")

        with meanwhile(look, PATIENCE):
            yield

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


def autoscaling() -> Any:
    """What Ray's autoscaler has written down: the second one, which `ray up` starts. Of the first
    one, of none, and of a head that does not answer now, nothing."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Compiled.
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.exceptions import RpcError

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply()
    with suppress(RpcError):  # Who waits for machines need not end for it.
        reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    return reply.autoscaling_state


def hindrance(state: Any) -> str:
    """Why machines do not come, as far as the autoscaler knows: no spot machines, a quota."""
    failed = {f"{one.ray_node_type_name}: {one.reason}" for one in state.failed_instance_requests}
    if not failed:
        return "`ray status` tells what is to come."
    return f"Could not start {'; '.join(sorted(failed))}."
