"""Ray, Kubernetes, Docker, Slurm and bash accept the files under cluster/."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from wpray.config.groups import EnvConfig, RayConfig

CLUSTER = Path(__file__).parents[2] / "cluster"
LAUNCHER_FILES = sorted(CLUSTER.glob("*.yaml"))
KUBERAY_FILES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
SCRIPTS = [CLUSTER / "bootstrap.sh", *sorted((CLUSTER / "slurm").iterdir())]


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.stem)
def test_rays_own_schema_accepts_the_cluster_file(path: Path) -> None:
    import jsonschema
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    data = yaml.safe_load(path.read_text())
    jsonschema.validate(data, schema)
    for node_type in data.get("available_node_types", {}).values():
        assert node_type.get("max_workers", 0) <= data.get("max_workers", 0)
    if "available_node_types" in data:
        assert data["head_node_type"] in data["available_node_types"]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_rays_autoscaler_starts_env_workers_for_env_actors_that_wait(name: str) -> None:
    """Ray's own planner decides. It would consider a node type of unknown memory infeasible for them."""
    from ray.autoscaler._private import resource_demand_scheduler as planner
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary

    data = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    types, head = data["available_node_types"], data["head_node_type"]
    worker = types["env_worker"]
    assert worker["min_workers"] == 0
    if name == "aws":  # Ray asks Amazon for the instance's resources
        assert worker["node_config"]["InstanceType"] == "m7i.8xlarge"
        worker["resources"], types[head]["resources"] = {"CPU": 32, "memory": 0.7 * 128 * 2**30}, {"CPU": 16, "GPU": 1}
    each = {"CPU": RayConfig().env_cpus, "memory": EnvConfig().memory_gb * 2**30}
    nothing_known = NodeAvailabilitySummary(node_availabilities={})
    scorer = functools.partial(planner._default_utilization_scorer, node_availability_summary=nothing_known)
    for nodes in (1, 5, 16):
        demand = [each] * (nodes * worker["resources"]["CPU"])  # one core each, so memory must not limit
        started, unmet = planner.get_nodes_for(types, {head: 1}, head, data["max_workers"], demand, scorer)
        assert (dict(started), unmet) == ({"env_worker": nodes}, [])


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.stem)
def test_the_launcher_starts_the_workers_and_what_a_submitted_run_needs(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    head, worker = (data[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head  # because the head starts the workers
    assert "--dashboard-host=127.0.0.1" in head  # serves Ray Jobs; `ray dashboard` forwards it
    for command in (head, worker):
        assert command.startswith("export PATH=/opt/wpray/.venv/bin:$PATH; ")  # so that a job finds its python


def _ray_clusters(data: dict[str, Any]) -> dict[str, Any]:
    return data["spec"]["rayClusterSpec"] if data["kind"] == "RayJob" else data["spec"]


@pytest.mark.parametrize("path", KUBERAY_FILES, ids=lambda path: path.stem)
def test_kubernetes_accepts_every_pod_of_the_kuberay_file(path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    data = yaml.safe_load(path.read_text())
    assert data["apiVersion"] == "ray.io/v1"
    spec = _ray_clusters(data)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        validate.validate(pod, "1.31", strict=True)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("path", KUBERAY_FILES, ids=lambda path: path.stem)
def test_kuberay_knows_every_field(path: Path) -> None:
    """Field names of the KubeRay v1 API that the files use; an unknown one would be ignored silently.

    They are listed by hand because no package on PyPI, npm or Debian holds KubeRay's schemas.
    """
    data = yaml.safe_load(path.read_text())
    job = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
    if data["kind"] == "RayJob":
        assert set(data["spec"]) <= job
    spec = _ray_clusters(data)
    cluster = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
    worker = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert set(spec) <= cluster
    assert set(spec["headGroupSpec"]) <= {"rayStartParams", "template"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= worker
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_job_and_cluster_describe_the_same_nodes() -> None:
    job, cluster = (
        yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text()) for name in ("rayjob", "raycluster")
    )
    assert _ray_clusters(job) == _ray_clusters(cluster)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    done = subprocess.run([_tool("shellcheck"), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_dockerfile_is_sound_and_does_not_run_as_root() -> None:
    done = subprocess.run([_tool("hadolint"), str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    users = [line.split()[1] for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line.startswith("USER")]
    assert users and users[-1] not in ("root", "0")


def test_bootstrap_without_a_command_explains_itself() -> None:
    done = subprocess.run(["bash", str(CLUSTER / "bootstrap.sh")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "bootstrap.sh launch" in done.stderr


def test_bootstrap_names_the_interpreters_it_can_use() -> None:
    environment = {"PATH": "/usr/bin:/bin", "WPRAY_PYTHON": "/nonexistent", "WPRAY_VENV": "/nonexistent/venv"}
    done = subprocess.run(
        ["bash", str(CLUSTER / "bootstrap.sh"), "setup"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "WPRAY_PYTHON" in done.stderr.splitlines()[-1]


@pytest.mark.libero
def test_bootstrap_installs_nothing_a_second_time_nor_what_a_larger_set_up_holds(tmp_path: Path) -> None:
    log, python = tmp_path / "log", tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo Python 3.12.0 || echo "$*" >> {log}\n')
    python.chmod(0o755)

    def calls(*arguments: str) -> list[str]:
        log.write_text("")
        command = ["bash", str(CLUSTER / "bootstrap.sh"), *arguments]
        subprocess.run(command, check=True, env=os.environ | {"WPRAY_VENV": str(tmp_path / "venv")}, timeout=60)
        return log.read_text().splitlines()

    first = calls("setup", "rlds")
    assert any("--editable" in call for call in first) and first[-1] == "-m wpray.benchmarks.libero.warm_up"
    pi0 = ("--config", str(CLUSTER.parent / "configs" / "pi0_libero_10.yaml"))
    vla = [(option, "x") for option in ("--joint_checkpoint", "--vlm_checkpoint")]
    for extra, arguments in (*(("hf", own) for own in (("--policy", "pi0"), pi0)), *(("vla", own) for own in vla)):
        for stamp in (tmp_path / "venv").glob(".wpray-*"):
            stamp.unlink()
        installs = [call for call in calls("launch", *arguments) if "--editable" in call]
        assert any(f"[{extra}]" in call for call in installs), arguments
    assert calls("launch", "--seed", "1") == ["-m wpray.launch --seed 1"]
    assert any("--editable" in call for call in calls("test"))
    for again in (("test",), ("setup", "vla"), ("dataset_stats", "x"), ("launch",), ("node",)):
        assert not any("pip" in call for call in calls(*again)), again
