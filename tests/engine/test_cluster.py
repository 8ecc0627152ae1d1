"""What a driver may ask the Ray it runs on."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rocketray import artifacts
from rocketray.artifacts import RunFolder, Writer
from rocketray.engine.cluster import connect, job_has_ended
from rocketray.engine.room import asked_by
from rocketray.errors import UserError
from rocketray.recipe import Cluster, TrainCluster

CLAIM = "import sys; from rocketray.artifacts import RunFolder; RunFolder(sys.argv[1]).claim()"

WAIT = "; import time; time.sleep(200)"


def submit(client: Any, name: str, entrypoint: str) -> None:
    """As soon as Ray takes it: its agent starts after everything else."""
    variables = {"PYTHONPATH": os.pathsep.join(sys.path)}
    end = time.monotonic() + 180
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint, submission_id=name, runtime_env={"env_vars": variables}
            )
            return
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def elsewhere(folder: Path) -> Writer:
    """The folder's holder, as if it had claimed it on another host."""
    path = folder / "writers" / "000001.json"
    told = json.loads(path.read_text()) | {"host": "another-host"}
    artifacts.write_json(path, told)
    return Writer(**told)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")  # Ray's own.
def test_a_gpu_that_this_torch_cannot_use_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Nvidia

    monkeypatch.setattr(Nvidia, "get_current_node_num_accelerators", lambda: 1)
    connect(Cluster())
    try:
        assert "GPU" not in ray.cluster_resources()
        assert asked_by(TrainCluster()) == {"CPU": 1}
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # Ray's own.
def test_a_holder_whose_job_has_ended_is_superseded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.job_submission import JobSubmissionClient

    connect(Cluster())
    try:
        address = ray.get_runtime_context().gcs_address
        monkeypatch.setenv("RAY_ADDRESS", address)
        client = JobSubmissionClient(address)
        submit(client, "ended", f"{sys.executable} -c '{CLAIM}' {tmp_path / 'ended'}")
        submit(client, "running", f"{sys.executable} -c '{CLAIM}{WAIT}' {tmp_path / 'running'}")
        end = time.monotonic() + 240
        while not client.get_job_status("ended").is_terminal() or not list(
            tmp_path.glob("running/writers/*.json")
        ):
            assert time.monotonic() < end, client.get_job_logs("ended")
            time.sleep(0.2)
        assert elsewhere(tmp_path / "ended").job == f"ended@{address}"
        assert elsewhere(tmp_path / "running").job == f"running@{address}"
        assert not job_has_ended(f"unknown@{address}")
        assert not job_has_ended("ended@another:6379")
        folder = RunFolder(tmp_path / "ended")
        folder.claim(has_ended=job_has_ended)
        assert folder.writer == Writer(2)
        with pytest.raises(UserError, match="on another-host"):
            RunFolder(tmp_path / "running").claim(has_ended=job_has_ended)
    finally:
        ray.shutdown()
