"""What workers ask of a cluster that grows, and what it can never bring."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray.core.generated.autoscaler_pb2 import AutoscalingState, FailedInstanceRequest

from rocketray.engine import room
from tests import heads

ASK = """
import sys
from rocketray.engine import cluster, room
from rocketray.errors import UserError
from rocketray.recipe import Cluster, TrainCluster
told = Cluster(address=sys.argv[1])
cluster.connect(told)
for workers in (2, 1):
    try:
        room.of_training(TrainCluster(workers=workers, gpus=False)).wait(told, print)
        print(workers, "are there")
    except UserError as error:
        print(error)
"""


def test_why_a_machine_does_not_come_is_said() -> None:
    state = AutoscalingState()
    assert room.hindrance(state) == "`ray status` tells what is to come."
    for reason in ("no spot capacity", "no spot capacity", "quota"):
        failed = FailedInstanceRequest(ray_node_type_name="gpu", reason=reason)
        state.failed_instance_requests.append(failed)
    assert room.hindrance(state) == "Could not start gpu: no spot capacity; gpu: quota."


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="ends a head's processes by /proc")
def test_what_an_autoscaler_can_never_bring_is_refused() -> None:
    """One machine at most: two workers never come to it, one does. In this order: a machine that is
    there goes again when it idles."""
    with heads.head("--num-cpus=0", machines=1, autoscaler=2) as head:
        done = subprocess.run(
            [sys.executable, "-c", ASK, head.address], cwd=heads.ROOT, env=head.environment,
            text=True, capture_output=True, timeout=250, check=True,
        )  # fmt: skip
    two, never, one, there = done.stdout.splitlines()
    found = "1 machine with CPU 0 (0 free) could hold 0"
    asked = f"2 training workers ask for CPU 1 each; {found}"
    assert two == f"  waiting for machines. {asked}."
    assert never.startswith(f"{asked}, and the autoscaler can bring no more: ")
    assert never.endswith("Set fewer cluster.train.workers, or change the cluster's configuration.")
    assert one == f"  waiting for machines. 1 training worker asks for CPU 1; {found}."
    assert there == "1 are there"
