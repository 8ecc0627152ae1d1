"""A cloud's notice reaches Ray: docs/spot_notice.py as the clusters' commands start it, and the
hook of Kubernetes, beside a metadata server and a `ray` that write down what they are asked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import heads
from tests.heads import until

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs/spot_notice.py"
HEAD = "10.1.2.3"
ADDRESS = f"{HEAD}:6379"
TOLD = (
    f"token drain-node --address={ADDRESS} --node-id=aa11"
    " --reason=DRAIN_NODE_REASON_PREEMPTION --reason-message=spot --deadline-remaining-seconds="
)
RAY = """#!/bin/sh
echo "$RAY_AUTH_MODE $*" >> ~/told
test ! -e ~/refuses
"""
CLUSTERS = {"aws": "cluster.yaml", "gcp": "docs/gcp.yaml"}


@dataclass
class Metadata:
    """What both clouds tell a machine about itself."""

    url: str
    notice: bool = False
    answers: threading.Event = field(default_factory=threading.Event)
    """While it is not set, whoever asks hears nothing."""
    asked: list[str] = field(default_factory=list)


@contextmanager
def metadata() -> Iterator[Metadata]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            seconds = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self._answer(200 if seconds else 400, "secret")

        def do_GET(self) -> None:
            found.asked.append(self.path)
            found.answers.wait(30)
            if self.path == "/latest/meta-data/spot/instance-action":
                allowed = self.headers["X-aws-ec2-metadata-token"] == "secret"
                when = datetime.now(UTC) + timedelta(seconds=100)
                told = f'{{"action": "terminate", "time": "{when:%Y-%m-%dT%H:%M:%SZ}"}}'
                self._answer((200 if found.notice else 404) if allowed else 401, told)
            else:
                assert self.path == "/computeMetadata/v1/instance/preempted"
                allowed = self.headers["Metadata-Flavor"] == "Google"
                self._answer(200 if allowed else 403, "TRUE" if found.notice else "FALSE")

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            with suppress(OSError):  # Who asked has lost patience.
                self.wfile.write(text.encode())

        def log_message(self, *ignored: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Metadata(f"http://127.0.0.1:{server.server_port}")
    found.answers.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        found.answers.set()
        server.shutdown()
        server.server_close()


def hurried(folder: Path, url: str) -> Path:
    """The script, told of another metadata server, and in more of a hurry."""
    text = SCRIPT.read_text(encoding="utf-8")
    for old, new in [
        ("http://169.254.169.254", url), ("EVERY = 2.0", "EVERY = 0.05"),
        ("PATIENCE = 2.0", "PATIENCE = 0.2"),
    ]:  # fmt: skip
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / SCRIPT.name).write_text(text, encoding="utf-8")
    return folder / SCRIPT.name


@dataclass(frozen=True)
class Machine:
    """A spot worker's home, as file_mounts and setup_commands leave it."""

    home: Path
    command: str
    """What the cluster's file starts, as Ray's launcher hands it to a shell."""

    def start(self) -> None:
        """Over in a moment: Ray's launcher waits until nobody holds the pipe any more."""
        subprocess.run(
            ["bash", "-c", self.command], env={**os.environ, "HOME": str(self.home)}, timeout=20,
            stdin=subprocess.DEVNULL, capture_output=True, check=True, start_new_session=True,
        )  # fmt: skip

    def told(self) -> list[str]:
        """What `ray` was."""
        path = self.home / "told"
        return path.read_text().splitlines() if path.exists() else []

    def log(self) -> str:
        path = self.home / "spot_notice.log"
        return path.read_text() if path.exists() else ""

    def watchers(self) -> set[int]:
        """The processes that watch."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"{self.home}/{SCRIPT.name}\0" in path.read_text(errors="replace"):
                    found.add(int(path.parent.name))
        return found


@contextmanager
def raylet(node: str, address: str) -> Iterator[None]:
    """A process with the words on its command line by which one is known."""
    words = [sys.executable, "-c", "import time; time.sleep(300)"]
    words += [f"--node_id={node}", f"--gcs-address={address}"]
    process = subprocess.Popen(words)
    try:
        # Until then the command line is still the parent's.
        until(lambda: node in Path(f"/proc/{process.pid}/cmdline").read_text(), "it is there")
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def clouds() -> Iterator[Metadata]:
    with metadata() as found:
        yield found


@pytest.fixture(params=CLUSTERS)
def machine(request: pytest.FixtureRequest, tmp_path: Path, clouds: Metadata) -> Iterator[Machine]:
    from ray.autoscaler._private.command_runner import _with_interactive
    from ray.autoscaler._private.util import with_head_node_ip

    config = yaml.safe_load((ROOT / CLUSTERS[request.param]).read_text(encoding="utf-8"))
    assert config["file_mounts"]["~/spot_notice.py"] == "docs/spot_notice.py"
    hurried(tmp_path, clouds.url)
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    (programs / "ray").write_text(RAY)
    (programs / "ray").chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    (command,) = (c for c in config["worker_start_ray_commands"] if "spot_notice" in c)
    assert f"spot_notice.py {request.param} " in command
    (command,) = with_head_node_ip([command], HEAD)
    found = Machine(tmp_path, " ".join(_with_interactive(command)))
    with raylet("aa11", ADDRESS), raylet("bb22", "10.9.9.9:6379"):
        yield found
    for pid in found.watchers():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_notice_is_passed_on(machine: Machine, clouds: Metadata) -> None:
    """To the machine's own node alone, with what is left of the time; and then it is over."""
    machine.start()
    until(lambda: len(clouds.asked) > 3, "it asks again and again", 20)
    assert machine.told() == []
    clouds.notice = True
    until(lambda: not machine.watchers(), "it has ended", 20)
    (told,) = machine.told()
    assert told.startswith(TOLD)
    seconds = int(told.removeprefix(TOLD))
    assert seconds == 25 or 80 < seconds <= 100
    assert (seconds == 25) == ("computeMetadata" in clouds.asked[0])


def test_it_is_not_there_twice(machine: Machine, clouds: Metadata) -> None:
    """Ray's launcher starts it again with each start of the node."""
    machine.start()
    until(lambda: "Watching for a notice" in machine.log(), "it is there", 20)
    first = machine.watchers()
    machine.start()
    until(lambda: "Another process watches already." in machine.log(), "the second is told", 20)
    until(lambda: machine.watchers() == first, "it has gone", 20)
    assert len(first) == 1
    clouds.notice = True
    until(lambda: not machine.watchers(), "it has ended", 20)
    assert len(machine.told()) == 1


def test_it_outlives_a_server_that_does_not_answer(machine: Machine, clouds: Metadata) -> None:
    clouds.answers.clear()
    clouds.notice = True
    machine.start()
    until(lambda: len(clouds.asked) > 2, "it has asked three times", 20)
    assert machine.told() == []
    clouds.answers.set()
    until(lambda: not machine.watchers(), "it has ended", 20)
    assert len(machine.told()) == 1
    assert machine.log().count("does not answer as it should") == 1


def test_it_asks_ray_again(machine: Machine, clouds: Metadata) -> None:
    """As while the head is busy."""
    (machine.home / "refuses").touch()
    clouds.notice = True
    machine.start()
    until(lambda: len(machine.told()) > 1, "refused twice", 20)
    assert machine.watchers()
    (machine.home / "refuses").unlink()
    until(lambda: not machine.watchers(), "it has ended", 20)
    assert machine.log().count("Ray has been told.") == 1


@pytest.mark.parametrize("words", [[], ["azure", ADDRESS], ["aws"]])
def test_other_words_are_refused(words: list[str]) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "say aws or gcp, then HOST:PORT." in done.stderr


def test_kubernetes_hook_passes_it_on(tmp_path: Path) -> None:
    """In a pod, where the only raylet is the pod's own; and leaves time to save."""
    (job, _) = yaml.safe_load_all((ROOT / "docs/kuberay.yaml").read_text(encoding="utf-8"))
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    (container,) = group["template"]["spec"]["containers"]
    *shell, hook = container["lifecycle"]["preStop"]["exec"]["command"]
    assert re.search(r"; sleep 10$", hook)
    for pid, words in {"1": ["ray", "start"], "7": ["raylet", "--node_id=aa11"]}.items():
        (tmp_path / "proc" / pid).mkdir(parents=True)
        told = "".join(f"{word}\0" for word in words)
        (tmp_path / "proc" / pid / "cmdline").write_text(told)
    (tmp_path / "ray").write_text(RAY)
    (tmp_path / "ray").chmod(0o755)
    hook = hook.replace("/proc/", f"{tmp_path}/proc/").replace("sleep 10", "sleep 0")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": path, "RAY_AUTH_MODE": "token"}
    subprocess.run([*shell, hook], env=environment, check=True, timeout=20)
    told = TOLD.replace(f" --address={ADDRESS}", "") + "15"
    assert (tmp_path / "told").read_text().splitlines() == [told]


WORK = """
import sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=1)
class Work:
    def begin(self):
        print("begun")
work = Work.remote()  # Or the node would leave as soon as it is drained.
ray.get(work.begin.remote())
print("begun", flush=True)
from ray._private.state import state
while not (found := state.get_draining_nodes()):
    time.sleep(0.1)
print(*found)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_takes_the_notice(tmp_path: Path, clouds: Metadata) -> None:
    """The node's id is found, and Ray's own command accepts what it is given."""
    script = hurried(tmp_path, clouds.url)
    clouds.notice = True
    with heads.head("--num-cpus=1") as head:
        (node,) = head.nodes()
        environment = {**head.environment, "HOME": str(tmp_path)}
        driver = subprocess.Popen(
            [sys.executable, "-c", WORK, head.address], env=environment, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert driver.stdout
            assert driver.stdout.readline() == "begun\n"
            done = subprocess.run(
                [sys.executable, script, "aws", head.address], env=environment, text=True,
                timeout=120, capture_output=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "Ray has been told." in done.stdout
            assert driver.communicate(timeout=60)[0].split() == [node["node_id"]]
        finally:
            driver.kill()
            driver.communicate()
