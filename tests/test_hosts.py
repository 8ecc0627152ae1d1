"""The whole loop on several hosts (hosts.py) that share an S3 server and nothing else, and with one
of them cut off from the others: the bytes are those of two workers on this machine."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocketray import storage
from tests import hosts, s3
from tests.hosts import Host, Network, Process
from tests.runs import content, downloaded, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SETTINGS = (
    "cluster.train.threads=1",
    "cluster.bulk.gpus=false",
    "cluster.train.gpus=false",
    "steps.dual_0.epochs=40",
    "denoise.depth=100",
)
"""Threads would add up sums in another order; steps and blocks enough to be in the middle of."""
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A silent host is given up after seconds, and not after a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "2",
}
WORKERS = 3
PATIENCE = 240.0
"""Seconds until a run must have come to where a host is cut off."""
BUCKET = "bucket"


class Machines:
    """One Ray: a head that holds no work, and hosts of one CPU each."""

    def __init__(self, network: Network, endpoint: str, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.environment = hosts.environment(
            **s3.ENVIRONMENT, **RAY, RAY_AUTH_TOKEN=secrets.token_hex(32), AWS_ENDPOINT_URL=endpoint
        )
        self.head = network.add_host()
        self.address = f"{self.head.address}:6379"
        self.start_ray(self.head, "--head", "--num-cpus=0", f"--temp-dir={hosts.WRITABLE}/ray")
        hosts.wait_for_ray(self.log(self.head))
        self.workers = {host.name: host for host in (self.add() for _ in range(WORKERS))}
        for host in self.workers.values():
            hosts.wait_for_ray(self.log(host))

    def start_ray(self, host: Host, *options: str) -> None:
        host.start_ray(*options, log=self.log(host), environment=self.environment)

    def log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def add(self) -> Host:
        host = self.network.add_host()
        self.start_ray(host, f"--address={self.address}", "--num-cpus=1")
        return host

    def replace(self, name: str) -> None:
        """A new machine for one that is lost."""
        self.network.remove_host(self.workers.pop(name))
        host = self.add()
        hosts.wait_for_ray(self.log(host))
        self.workers[host.name] = host


class Run:
    """`rocketray run tiny --out URL` on the head; goes on with what is there."""

    def __init__(self, machines: Machines, name: str, *options: str) -> None:
        url = f"s3://{BUCKET}/{name}"
        self.out, self.log = storage.locate(url), machines.folder / f"{name}.log"
        command = [sys.executable, "-m", "rocketray.cli", "run", "tiny", "--out", url, *options]
        for setting in SETTINGS:
            command += ["--set", setting]
        environment = {**machines.environment, "RAY_ADDRESS": machines.address}
        self.process = machines.head.start(*command, log=self.log, environment=environment)

    def finish(self) -> None:
        assert self.process.wait(timeout=900) == 0, self.log.read_text()[-4000:]

    def wait_until(self, true: Callable[[], object]) -> None:
        """The run must still be on its way then."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.05)

    def files(self, pattern: str) -> list[Path]:
        """Of the store."""
        return [path for path in storage.files(self.out) if path.match(pattern)]

    def starts(self, model: str) -> list[dict[str, Any]]:
        """What the log of a training tells of each start of its workers."""
        (log,) = self.files(f"{model}-*/log.jsonl")
        lines = map(json.loads, (storage.read(log) or b"").splitlines())
        return [line["start"] for line in lines if "start" in line]

    def makers(self, stage: str) -> list[str]:
        """The hosts that made a bulk stage's blocks."""
        paths = self.files(f"{stage}-*/receipts/*.json")
        workers = [json.loads(storage.read(path) or b"")["about"]["worker"] for path in paths]
        return [worker.partition(":")[0] for worker in workers]


def made(run: Run, folder: Path) -> dict[str, str]:
    """The bytes it left."""
    return content(downloaded(run.out, folder))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if lacking := hosts.lacking():
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("hosts")
    with hosts.network() as network, s3.server(folder / "moto.log", network.address) as endpoint:
        s3.make_bucket(endpoint, BUCKET)
        with pytest.MonkeyPatch.context() as ours:  # This process looks on.
            for name, value in s3.ENVIRONMENT.items():
                ours.setenv(name, value)
            ours.setenv("AWS_ENDPOINT_URL", endpoint)
            ours.setenv("ROCKETRAY_CACHE", str(folder / "mirror"))
            yield Machines(network, endpoint, folder)


@pytest.fixture(scope="module")
def here(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of a run on this machine and its disk, of as many training workers."""
    out = tmp_path_factory.mktemp("here") / "run"
    finish(out, *SETTINGS, "cluster.bulk.actors=0")
    return content(out)


def test_hosts_share_nothing(machines: Machines) -> None:
    first, second = list(machines.workers.values())[:2]
    log = machines.folder / "touch.log"

    def touch(host: Host, path: Path) -> Process:
        return host.start("touch", str(path), log=log, environment=machines.environment)

    mine = Path(hosts.WRITABLE) / first.name
    assert touch(first, mine).wait() == 0
    assert (first.disk / mine.relative_to("/")).exists()
    assert not (second.disk / mine.relative_to("/")).exists()
    assert not mine.exists()
    assert touch(first, Path(__file__).parent / "touched").wait() != 0


def test_tiny_end_to_end(machines: Machines, here: dict[str, str], tmp_path: Path) -> None:
    run = Run(machines, "whole")
    run.finish()
    for model in ("dual_0", "cross", "dual_1", "dual_2"):
        (start,) = run.starts(model)
        assert len(set(start["hosts"])) == 2
        assert set(start["hosts"]) <= machines.workers.keys()
    stages = ("dual_0_embeddings", "dual_0_train_scored", "dual_1_unlabelled_scored")
    makers = {host for stage in stages for host in run.makers(stage)}
    assert makers <= machines.workers.keys()
    assert len(makers) > 1
    assert made(run, tmp_path) == here


def test_a_host_is_cut_off_in_mid_training(
    machines: Machines, here: dict[str, str], tmp_path: Path
) -> None:
    run = Run(machines, "cut", "--until", "dual_0")
    run.wait_until(lambda: run.files("dual_0-*/checkpoints/step-00000008/state.json"))
    (start,) = run.starts("dual_0")
    lost = start["hosts"][0]  # Who writes the checkpoints.
    machines.workers[lost].cut_off()
    run.wait_until(lambda: len(run.starts("dual_0")) == 2)
    machines.workers[lost].reconnect()  # Whatever it still has to say changes nothing.
    run.finish()
    again = run.starts("dual_0")[-1]
    assert lost not in again["hosts"]
    assert again["from_step"] >= 8
    assert made(run, tmp_path).items() <= here.items()
    machines.replace(lost)


def test_a_host_is_cut_off_in_mid_score(
    machines: Machines, here: dict[str, str], tmp_path: Path
) -> None:
    run = Run(machines, "cut", "--until", "dual_0_train_scored")
    run.wait_until(lambda: run.files("dual_0_train_scored-*/receipts/*.json"))
    lost = run.makers("dual_0_train_scored")[0]
    machines.workers[lost].cut_off()
    begun = len(run.makers("dual_0_train_scored"))
    run.finish()
    assert begun < len(run.makers("dual_0_train_scored"))
    assert made(run, tmp_path).items() <= here.items()
