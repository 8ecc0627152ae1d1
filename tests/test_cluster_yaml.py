"""The clusters that come with rocketray: valid for Ray's launcher, and without the defaults that
would do harm."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
Config = dict[str, Any]


@pytest.fixture(scope="module", params=["cluster.yaml", "docs/gcp.yaml"])
def written(request: pytest.FixtureRequest) -> Config:
    """The file as it stands."""
    config: Config = yaml.safe_load((ROOT / request.param).read_text(encoding="utf-8"))
    return config


@pytest.fixture(scope="module")
def config(written: Config) -> Config:
    """The file as the launcher completes it with its own defaults. Asks no cloud."""
    from ray.autoscaler._private.util import prepare_config

    prepared: Config = prepare_config(written)
    return prepared


def test_the_launcher_accepts_it(config: Config) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(config)


def test_an_unknown_field_would_be_refused(written: Config) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError):
        validate_config(prepare_config({**written, "max_wokers": 3}))


def test_the_head_runs_no_work(config: Config) -> None:
    assert config["head_node_type"] == "head"
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_workers_are_spot_machines_from_zero(config: Config, name: str) -> None:
    node = config["available_node_types"][name]
    assert node["min_workers"] == 0
    assert node["max_workers"] <= config["max_workers"]
    assert "spot" in str(node["node_config"]).lower()


def test_every_machine_may_use_the_bucket(config: Config) -> None:
    """Ray's launcher gives the head a role on AWS, and workers none."""
    field = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[config["provider"]["type"]]
    for name in ("cpu", "gpu"):
        assert config["available_node_types"][name]["node_config"][field]


def test_a_gpus_type_is_known_before_there_is_a_machine(config: Config) -> None:
    """Ray asks AWS alone for it."""
    said = {"aws": {}, "gcp": {"accelerator_type:L4": 1}}[config["provider"]["type"]]
    resources = config["available_node_types"]["gpu"]["resources"]
    assert resources == {"CPU": 8, "GPU": 1, **said}


def test_gpus_are_on_gpu_workers_only(config: Config) -> None:
    nodes = config["available_node_types"]
    assert [name for name in nodes if "GPU" in nodes[name]["resources"]] == ["gpu"]


def test_shells_on_a_node_have_the_token(config: Config) -> None:
    """`ray status` and `ray drain-node` do not look for it by themselves."""
    assert any("export" in c and "RAY_AUTH_MODE=token" in c for c in config["setup_commands"])


@pytest.mark.parametrize("where", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_asks_for_the_token(config: Config, where: str) -> None:
    starts = [command for command in config[where] if "ray start" in command]
    assert starts
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_the_dashboard_is_on_loopback(config: Config) -> None:
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--ray-client-server-port=0" in start
    assert "0.0.0.0" not in str(config)


def test_no_nightly_build_is_installed(config: Config) -> None:
    assert "ray-wheels" not in str(config)
    (install,) = (c for c in config["setup_commands"] if "pip install" in c)
    assert "-c ~/rocketray-constraints.txt" in install


def test_nodes_install_every_dependency(written: Config) -> None:
    """The code travels with the job; what it imports must already be there."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]["quickstart"]
    needed = {re.split(r"[<>=]", line)[0] for line in [*project["dependencies"], *extras]}
    (install,) = (c for c in written["setup_commands"] if "pip install" in c)
    words = install.replace('"', "").split()
    assert needed <= set(words)


# ------------------------------------------------------------------------------------- kubernetes


@pytest.fixture(scope="module")
def kubernetes() -> Config:
    job: Config = yaml.safe_load((ROOT / "docs/kuberay.yaml").read_text(encoding="utf-8"))
    return job


def test_kubernetes_head_runs_no_work(kubernetes: Config) -> None:
    cluster = kubernetes["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster["authOptions"] == {"mode": "token"}


def test_kubernetes_workers_come_when_asked_for(kubernetes: Config) -> None:
    cluster = kubernetes["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0
        assert group["maxReplicas"] > 0


def test_kubernetes_gpus_type_is_known_before_there_is_a_machine(kubernetes: Config) -> None:
    """As the autoscaler reads it."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    groups = kubernetes["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    found = [
        autoscaling_config._get_ray_resources_from_group_spec(group, is_head=False)
        for group in groups
    ]
    memory = [{"memory": 64 * 2**30}, {"memory": 32 * 2**30}]
    assert found == [
        {"CPU": 16, **memory[0]}, {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1, **memory[1]},
    ]  # fmt: skip


def test_kubernetes_pods_may_use_the_bucket(kubernetes: Config) -> None:
    cluster = kubernetes["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["serviceAccountName"]


def test_kubernetes_rays_version_is_the_pinned_one(kubernetes: Config) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^ray==(\S+)", pins, re.MULTILINE)
    assert kubernetes["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_kubernetes_runs_a_real_command(kubernetes: Config) -> None:
    """Its options and fields are the command line's and the recipe's."""
    from rocketray import recipe

    verb, name, *words = shlex.split(kubernetes["spec"]["entrypoint"].removeprefix("rocketray "))
    assert verb == "run"
    settings = [after for before, after in itertools.pairwise(words) if before == "--set"]
    told = recipe.load(name, settings)
    assert told.cluster.bulk.gpus is True
    assert told.cluster.train.workers == 4
