"""The clusters that come with rocketray: valid for Ray's launcher, and without the defaults that
would do harm."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
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
    start = _start(config, "head_start_ray_commands")
    assert "--dashboard-host=127.0.0.1" in start
    assert "--ray-client-server-port=0" in start
    assert "0.0.0.0" not in str(config)


def _start(config: Config, where: str) -> str:
    (start,) = (c for c in config[where] if "ray start" in c)
    return str(start)


def test_a_job_that_is_told_to_stop_has_a_minute(config: Config) -> None:
    """Read by its supervisor, a process of the head's: its environment is that of `ray start`."""
    before, _ = _start(config, "head_start_ray_commands").split("ray start")
    assert "RAY_JOB_STOP_WAIT_TIME_S=60 " in before


def test_workers_watch_for_a_notice(config: Config) -> None:
    """Once their node is there; the head is no spot machine."""
    assert "spot" not in str(config["head_start_ray_commands"])
    *_, start, watch = config["worker_start_ray_commands"]
    assert "ray start" in start
    assert "spot_notice.py" in watch
    assert "RAY_AUTH_MODE=token" in watch


def test_google_leaves_the_time_to_save(config: Config) -> None:
    """Its notice is a press of the power key, which Ubuntu would obey."""
    listens = "HandlePowerKey=ignore" not in str(config["worker_setup_commands"])
    assert listens == (config["provider"]["type"] == "aws")


def test_machines_have_private_addresses(config: Config) -> None:
    """In networks that the file names: those that Ray finds by itself are public."""
    assert config["provider"]["use_internal_ips"] is True
    for node in config["available_node_types"].values():
        told = node["node_config"]
        if config["provider"]["type"] == "aws":
            assert told["SubnetIds"]
            assert told["SecurityGroupIds"]
        else:
            (interface,) = told["networkInterfaces"]
            assert "accessConfigs" not in interface  # Ray would leave one as it is.


def test_ubuntus_own_updates_are_waited_for(config: Config) -> None:
    """They hold apt's locks after the first boot. Where nothing is missing, nothing is asked."""
    first = config["initialization_commands"][0]
    assert first.startswith("dpkg -s ")
    assert "for try in $(seq 120); do sudo apt-get update -q && break; sleep 5; done;" in first
    assert "DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install" in first


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


@pytest.fixture
def aws() -> Iterator[tuple[Config, Any]]:
    """cluster.yaml filled in, in an account (moto's) with the network it asks for: and that."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import config as launcher
    from ray.autoscaler._private.aws import utils
    from ray.autoscaler._private.util import prepare_config

    written = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    for cached in (utils.resource_cache, utils.client_cache, launcher._get_subnets_or_die):
        cached.cache_clear()
    with mock_aws():
        ec2 = boto3.resource("ec2", written["provider"]["region"])
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        subnets = [
            network.create_subnet(CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"us-west-2{zone}")
            for n, zone in enumerate("ab")
        ]
        group = network.create_security_group(GroupName="own", Description="own")
        for node in written["available_node_types"].values():
            node["node_config"]["SubnetIds"] = [subnet.id for subnet in subnets]
            node["node_config"]["SecurityGroupIds"] = [group.id]
        yield prepare_config(written), ec2


def test_ray_takes_the_private_network_as_it_is(aws: tuple[Config, Any]) -> None:
    """And makes no security group of its own, which would open port 22 to the world."""
    from ray.autoscaler._private.aws.config import _configure_security_group, _configure_subnet

    config, ec2 = aws
    before = {group.id for group in ec2.security_groups.all()}
    done = _configure_security_group(_configure_subnet(config))
    for name, node in done["available_node_types"].items():
        asked = config["available_node_types"][name]["node_config"]
        assert node["node_config"]["SecurityGroupIds"] == asked["SecurityGroupIds"]
        assert node["node_config"]["SubnetIds"] == asked["SubnetIds"]
        for subnet in node["node_config"]["SubnetIds"]:
            assert not ec2.Subnet(subnet).map_public_ip_on_launch
    assert {group.id for group in ec2.security_groups.all()} == before


def test_without_use_internal_ips_ray_refuses_private_subnets(aws: tuple[Config, Any]) -> None:
    from click import ClickException
    from ray.autoscaler._private.aws.config import _configure_subnet

    config, _ = aws
    del config["provider"]["use_internal_ips"]
    with pytest.raises(ClickException):
        _configure_subnet(config)


def test_a_first_try_is_open_to_the_world(aws: tuple[Config, Any]) -> None:
    """What cluster.yaml and docs/operations.md say of it."""
    from ray.autoscaler._private.aws.config import _configure_security_group, _configure_subnet

    config, ec2 = aws
    del config["provider"]["use_internal_ips"]
    for node in config["available_node_types"].values():
        del node["node_config"]["SubnetIds"], node["node_config"]["SecurityGroupIds"]
    done = _configure_security_group(_configure_subnet(config))
    head = done["available_node_types"]["head"]["node_config"]
    assert all(ec2.Subnet(subnet).map_public_ip_on_launch for subnet in head["SubnetIds"])
    (group,) = map(ec2.SecurityGroup, head["SecurityGroupIds"])
    assert group.group_name == "ray-autoscaler-rocketray"
    world = [rule for rule in group.ip_permissions if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in world] == [(22, 22)]


# ------------------------------------------------------------------------------------- kubernetes


def _manifest(kind: str) -> Config:
    found = yaml.safe_load_all((ROOT / "docs/kuberay.yaml").read_text(encoding="utf-8"))
    (manifest,) = (one for one in found if one["kind"] == kind)
    return dict(manifest)


@pytest.fixture(scope="module")
def kubernetes() -> Config:
    return _manifest("RayJob")


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


def test_kubernetes_speaks_of_one_cloud(kubernetes: Config) -> None:
    """Its node labels are Google's: so is its bucket."""
    assert "cloud.google.com/gke-spot" in str(kubernetes)
    assert "gs://" in kubernetes["spec"]["entrypoint"]
    assert "s3://" not in str(kubernetes)


def test_kubernetes_job_that_is_told_to_stop_has_a_minute(kubernetes: Config) -> None:
    spec = kubernetes["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert spec["containers"][0]["env"] == [{"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "60"}]


def test_kubernetes_workers_pass_a_notice_on(kubernetes: Config) -> None:
    """tests/test_spot_notice.py runs the hook."""
    for group in kubernetes["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert "ray drain-node" in str(container["lifecycle"]["preStop"])


def test_kubernetes_admits_the_operator_and_the_namespace_alone(kubernetes: Config) -> None:
    """KubeRay has the dashboard listen on the head's own address, and gives the head a service that
    is none of the world's unless the manifest asks for one."""
    assert "serviceType" not in kubernetes["spec"]["rayClusterSpec"]["headGroupSpec"]
    policy = _manifest("NetworkPolicy")["spec"]
    assert policy["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    namespace, operator = rule["from"]
    assert namespace == {"podSelector": {}}
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    assert operator == {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}
