"""Several hosts on one machine, as Linux namespaces. Needs root.

    here, 198.18.N.1 ── bridge ──┬── eth0 of host 1, 198.18.N.11
                                 └── eth0 of host 2, 198.18.N.12 ...

A host has its own network, name, processes and mounts. Of the disk it may write `WRITABLE` alone,
which is its own and starts empty; so hosts share what goes through the network, and nothing else.
The name of a host leads nowhere: nothing may count on a name server.

A host lives as long as its first process, which reads a pipe of ours: its processes, its mounts and
its cable end with us, whatever happens. The bridge alone is left by a test that is killed.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Environment = Mapping[str, str]
Process = subprocess.Popen[bytes]

OWN = ("--net", "--mount", "--uts", "--ipc", "--pid")
WRITABLE = "/var/tmp"
"""For rocketray's cache, Ray's folder and temporary files; beside it, for Ray, /dev/shm."""
BOOT = f"""
hostname "$1"
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount -t tmpfs -o size=2g tmpfs {WRITABLE}
[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf
mount -o remount,bind,ro /
ip link set lo up
echo up
exec cat
"""
NETWORK = "198.18"
"""Set aside for trials (RFC 2544): no real network is called so."""
SECONDS = 120.0
"""Within which a host's Ray must have started."""


def lacking() -> str:
    """What is missing for hosts to be made here; "" if nothing."""
    if not os.environ.get("ROCKETRAY_HOSTS"):
        return "takes from five to twenty minutes: set ROCKETRAY_HOSTS=1"
    tools = [tool for tool in ("ip", "unshare", "nsenter") if not shutil.which(tool)]
    if tools:
        return f"no command {', '.join(tools)}"
    trial = ["unshare", *OWN, "--fork", "ip", "link", "add", "trial", "type", "bridge"]
    ended = subprocess.run(trial, capture_output=True, text=True)
    return f"no right to make namespaces: {ended.stderr.strip()}" if ended.returncode else ""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Host:
    """One machine, with a name, an address and a cable called as itself. `end` it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.processes: list[Process] = []
        command = ["unshare", *OWN, "--fork", "--kill-child", "--mount-proc"]
        self._switch = subprocess.Popen(
            [*command, "--propagation", "private", "sh", "-ec", BOOT, "sh", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._switch.stdout is not None
        assert self._switch.stdout.readline() == b"up\n"
        children = Path(f"/proc/{self._switch.pid}/task/{self._switch.pid}/children")
        self.first = int(children.read_text())
        """The first process: its namespaces are the host's."""
        self.disk = Path(f"/proc/{self.first}/root")
        """The host's files, for a look from outside."""

    def start(self, *command: str, log: Path, environment: Environment) -> Process:
        """Run a command here."""
        enter = ["nsenter", "--target", str(self.first), *OWN, "--", *command]
        with log.open("ab") as output:
            process = subprocess.Popen(enter, stdout=output, stderr=output, env=environment)
        self.processes.append(process)
        return process

    def start_ray(self, *options: str, log: Path, environment: Environment) -> Process:
        """A node of Ray; `wait_for_ray` waits until it is one."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += [f"--node-ip-address={self.address}", "--object-store-memory=100000000"]
        return self.start(*command, log=log, environment=environment)

    def cut_off(self) -> None:
        """Pull the cable: nobody is told, no connection ends."""
        ip("link", "set", self.name, "down")

    def reconnect(self) -> None:
        ip("link", "set", self.name, "up")

    def end(self) -> None:
        """Power off."""
        ip("link", "delete", self.name)
        self._switch.communicate()
        for process in self.processes:
            process.wait()


def wait_for_ray(log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while "Ray runtime started" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


class Network:
    """A bridge, and hosts whose cables end there."""

    def __init__(self) -> None:
        number = random.randrange(1 << 16)
        self.name, self.net = f"rr{number:04x}", f"{NETWORK}.{number % 256}"
        self.address = f"{self.net}.1"
        """Of this machine, for its hosts."""
        self.hosts: list[Host] = []
        self._numbers = itertools.count(1)

    def add_host(self) -> Host:
        number = next(self._numbers)
        host = Host(f"{self.name}-{number}", f"{self.net}.{10 + number}")
        self.hosts.append(host)
        inside = ("peer", "name", "eth0", "netns", str(host.first))
        ip("link", "add", host.name, "type", "veth", *inside)
        ip("link", "set", host.name, "master", self.name, "up")
        for setting in (
            f"address add {host.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self.address}",
        ):
            command = ["nsenter", "--target", str(host.first), "--net", "ip", *setting.split()]
            subprocess.run(command, check=True)
        return host

    def remove_host(self, host: Host) -> None:
        self.hosts.remove(host)
        host.end()


@contextmanager
def network() -> Iterator[Network]:
    made = Network()
    # By itself a bridge takes the lowest address of its cables: when that cable's host goes, the
    # others send to an address that is nobody's, and reach nothing here for half a minute.
    ip("link", "add", made.name, "address", "02:00:00:00:00:01", "type", "bridge")
    try:
        ip("address", "add", f"{made.address}/24", "dev", made.name)
        ip("link", "set", made.name, "up")
        yield made
    finally:
        while made.hosts:
            made.remove_host(made.hosts[-1])
        ip("link", "delete", made.name)


def environment(**more: str) -> dict[str, str]:
    """Of a process on a host: ours, but for what would lead it where it may not write."""
    ours = {name: value for name, value in os.environ.items() if name != "ROCKETRAY_CACHE"}
    return {**ours, "TMPDIR": WRITABLE, "HOME": WRITABLE, "OMP_NUM_THREADS": "1", **more}
