"""What a run tells Ray's metrics arrives at a node's metrics port. Slow: Ray exports every 10 s."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from rocketray.artifacts import Draft
from rocketray.engine.bulk import Job, run_jobs
from rocketray.engine.metrics import TrainMetrics
from rocketray.recipe import BulkCluster, Cluster, TrainCluster
from tests.toys import Double, begun


@pytest.mark.slow
@pytest.mark.timeout(360)
@pytest.mark.filterwarnings("default")  # Ray's own.
def test_blocks_rows_and_steps_are_exported(tmp_path: Path) -> None:
    told = Cluster(bulk=BulkCluster(actors=1, gpus=False), train=TrainCluster(workers=0))
    try:
        draft = begun(Draft(tmp_path / "counted", "counted", {}))
        run_jobs([Job(draft, Double, {}, [[1, 2], [3]], ["a", "b"])], told, lambda receipt: None)
        TrainMetrics("dual_7")(3, 10, 0.5)
        wanted = {
            'ray_rocketray_blocks_total{stage="counted"}': 2.0,
            'ray_rocketray_rows_total{stage="counted"}': 3.0,
            'ray_rocketray_step{model="dual_7"}': 3.0,
            'ray_rocketray_steps{model="dual_7"}': 10.0,
            'ray_rocketray_loss{model="dual_7"}': 0.5,
        }
        deadline = time.monotonic() + 180
        while not (found := exported()).items() >= wanted.items():
            assert time.monotonic() < deadline, found
            time.sleep(1)
    finally:
        import ray

        ray.shutdown()  # Other tests start one of other sizes.


def exported() -> dict[str, float]:
    """Ours of what the node shows, by name and our own tag; nothing while it does not answer."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        if line.startswith("ray_rocketray_"):
            series, _, value = line.rpartition(" ")
            name, _, tags = series.rstrip("}").partition("{")
            own = [tag for tag in tags.split(",") if tag.startswith(("stage=", "model="))]
            found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found
