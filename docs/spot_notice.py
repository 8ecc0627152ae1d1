"""Tells Ray that the cloud takes this spot machine back, so that training saves a checkpoint first.

Ray's launcher watches for no such notice. The workers of cluster.yaml and gcp.yaml start this:

    python3 spot_notice.py aws|gcp ADDRESS

ADDRESS is the head's, as `ray start --address` has it. It needs Python and the `ray` command alone:
rocketray is not installed on a node. It ends when Ray has been told. On Kubernetes a preStop hook
does the same (kuberay.yaml).
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

METADATA = "http://169.254.169.254"
"""Where both clouds answer the machine itself."""
EVERY = 2.0
"""Seconds between two looks."""
PATIENCE = 2.0
"""Seconds that an answer may take."""
RAY_SECONDS = 30.0
"""Seconds that the `ray` command may take: its head may be gone, too."""
GCP_SECONDS = 25.0
"""What is left of Google's half a minute by the time it is seen."""


def aws() -> float | None:
    """Seconds until the machine is taken back; None while nobody says so.

    IMDSv2, https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html.
    """
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = {"X-aws-ec2-metadata-token": ask("/latest/api/token", ttl, "PUT")}
    try:
        told = ask("/latest/meta-data/spot/instance-action", token)
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    when = datetime.fromisoformat(json.loads(told)["time"])
    return (when - datetime.now(UTC)).total_seconds()


def gcp() -> float | None:
    """The same, https://cloud.google.com/compute/docs/instances/create-use-preemptible."""
    told = ask("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_SECONDS if told.strip() == "TRUE" else None


CLOUDS: Mapping[str, Callable[[], float | None]] = {"aws": aws, "gcp": gcp}


def ask(path: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """Never through a proxy: it would tell of its own machine."""
    request = Request(METADATA + path, headers=dict(headers), method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def nodes(address: str) -> list[str]:
    """Ids of this machine's nodes of the cluster. A raylet is told its own on its command line;
    asked for anew each time, since a node that is started again has another."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # It has just ended, or is somebody else's.
            continue
        if f"--gcs-address={address}" in words:
            found += [w.removeprefix("--node_id=") for w in words if w.startswith("--node_id=")]
    return found


def drain(node: str, address: str, seconds: float) -> bool:
    """Whether Ray has taken the notice."""
    command = [
        "ray", "drain-node", f"--address={address}", f"--node-id={node}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
        f"--deadline-remaining-seconds={max(1, int(seconds))}",
    ]  # fmt: skip
    try:
        return subprocess.run(command, timeout=RAY_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def alone(address: str) -> bool:
    """Whether no other process watches for this cluster: Ray's launcher starts its commands again
    whenever it starts a node again. The lock goes with the process."""
    lock = Path.home() / f".spot_notice-{address}.pid"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)  # Stays open.
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return True


def watch(cloud: str, address: str) -> None:
    """Return once Ray has been told; until then no failure ends it."""
    said = ""
    while True:
        try:
            seconds = CLOUDS[cloud]()
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            seconds = None
            if repr(error) != said:  # Once, not every two seconds for days.
                said = repr(error)
                say(f"{METADATA} does not answer as it should ({said}); asked again and again.")
        if seconds is not None:
            say(f"This machine is taken back in {seconds:.0f} s.")
            told = [drain(node, address, seconds) for node in nodes(address)]
            if told and all(told):
                say("Ray has been told.")
                return
        time.sleep(EVERY)


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", flush=True)


def main(words: list[str]) -> None:
    if len(words) != 2 or words[0] not in CLOUDS:
        sys.exit(f"spot_notice.py {' '.join(words)}: say {' or '.join(CLOUDS)}, then HOST:PORT.")
    if not alone(words[1]):
        say("Another process watches already.")
        return
    say(f"Watching for a notice of {words[0]}, for the cluster at {words[1]}.")
    watch(*words)


if __name__ == "__main__":
    main(sys.argv[1:])
