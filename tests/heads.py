"""A Ray head as people start one (`ray start --head --block`), with a token, as a child process.

It is asked over HTTP, so the tests' own process needs no token. Ray's `AutoscalingCluster` will not
do: it reads a file its wheel lacks, and stops every Ray of the machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

RAY = Path(sys.executable).with_name("ray")
ROOT = Path(__file__).parents[1]
SECONDS = 240.0
"""Patience with anything a head should do."""
IDLE = 15.0
"""Seconds after which an autoscaler takes a machine back; with fewer they come and go."""


@dataclass(frozen=True)
class Head:
    address: str
    """What a driver joins."""
    url: str
    """Of its dashboard and job server."""
    environment: Mapping[str, str]
    """Of every process that is to talk to it."""

    def ask(self, path: str, *, post: bool = False) -> Any:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = Request(f"{self.url}{path}", headers=token, method="POST" if post else "GET")
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's, in the repository's folder."""
        return subprocess.run(
            [RAY, *arguments], cwd=ROOT, env=self.environment, text=True, timeout=SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]]
        found = self.ask("/api/v0/nodes?detail=true")["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]

    def machines(self) -> int:
        """Nodes with a CPU for work."""
        return sum(node["resources_total"].get("CPU", 0) >= 1 for node in self.nodes())


@contextmanager
def head(*flags: str, machines: int = 0, autoscaler: int = 1) -> Iterator[Head]:
    """A head that can be worked with. It and all its nodes end here.

    Args:
        machines: so many of one CPU each its autoscaler starts, as work asks for them. They are
            processes here: Ray's own stand-in for a cloud.
        autoscaler: Ray's first, as KubeRay runs it, or its second, as `ray up` does.
    """
    port, dashboard = _free_ports(2)
    address = f"{_own_ip()}:{port}"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Until a job that was told to stop is killed: its 3 s are few on a busy machine.
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        # As where rocketray starts Ray itself; Ray's 2 s are lost at each start and end.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    found = Head(address, environment["RAY_API_SERVER_ADDRESS"], environment)
    # Not a test's own folder: the paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        if machines:
            flags += (f"--autoscaling-config={_autoscaling(Path(folder), address, machines)}",)
            environment |= FAKED | {"RAY_enable_autoscaler_v2": str(autoscaler - 1)}
        command = [
            str(RAY), "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}",
            "--include-dashboard=true", f"--dashboard-port={dashboard}",
            "--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0",
            "--object-store-memory=200000000", *flags,
        ]  # fmt: skip
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            until(lambda: _answers(found, process, log), "the head is there")
            yield found
        finally:
            _end(process)


FAKED = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "0" * 5,
    "RAY_CLOUD_INSTANCE_ID": "f" * 51 + "0" * 5,  # As the second autoscaler knows it.
    "RAY_NODE_TYPE_NAME": "ray.head.default",  # `ray up` and KubeRay tell every head its group.
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",  # A machine without one is gone.
    "RAY_health_check_period_ms": "1000",
}


def _autoscaling(folder: Path, address: str, machines: int) -> Path:
    config = {
        "cluster_name": "tests",
        "max_workers": machines,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE / 60,
        "provider": {
            # By its class: for its own name Ray reads a file of defaults, which its wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"node_config": {}, "resources": {"CPU": 0}, "max_workers": 0},
            "machine": {"node_config": {}, "resources": {"CPU": 1}, "max_workers": machines},
        },
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
        **{
            f"{what}_commands": []
            for what in ("initialization", "setup", "head_setup", "worker_setup",
                         "head_start_ray", "worker_start_ray")
        },
    }  # fmt: skip
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config))
    return path


def until(true: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not in {seconds:.0f} s"
        time.sleep(0.05)


def parents() -> dict[int, int]:
    """Of every process, its parent. A worker's is the raylet of its node."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # Just gone.
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _own_ip() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _answers(head: Head, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    with suppress(OSError):
        return bool(head.nodes())
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its faked machines would outlive it."""
    tree, found = parents(), {process.pid}
    while more := {child for child, parent in tree.items() if parent in found} - found:
        found |= more
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
