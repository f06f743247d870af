"""Placement of a run's actors: CPU nodes first, one policy replica a GPU, no more than memory allows."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from wpray.config import Config
from wpray.errors import BadInputError

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
GIB = 2**30
NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
POLICY = "tests.gpu_policy"  # needs a GPU, computes nothing


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """Yield a cluster of a head without CPUs."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the nodes' processes need the test policies
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def cluster(head: Any) -> Iterator[Any]:
    """Yield a head without CPUs; tests add nodes. GPUs are claimed, not real."""
    import ray

    try:
        yield head
    finally:
        ray.shutdown()
        for node in list(head.worker_nodes):
            head.remove_node(node)  # gracefully, because the head would wait for the heartbeats of a killed node


class Actors:
    """Actors of a run that assigns no trials."""

    def __init__(self, cluster: Any, **options: Any) -> None:
        from wpray.cluster.setup import policy_actors, start_ray
        from wpray.orchestration.actors import RunContext
        from wpray.orchestration.env_actor_pool import EnvActorPool
        from wpray.orchestration.events import EventQueue
        from wpray.orchestration.policy_actor_pool import PolicyActorPool
        from wpray.policies.factory import policy_spec

        ray_options = {"address": cluster.address, **options.pop("ray", {})}
        self.config = Config.model_validate({"task_suite": "fake", "policy": POLICY, "ray": ray_options, **options})
        cluster.wait_for_nodes()
        start_ray(self.config)
        spec = policy_spec(self.config)
        self.num_replicas, num_gpus = policy_actors(self.config, spec.num_gpus)
        self.context = context = RunContext("run", self.config, secrets.token_bytes(32), spec=spec)
        self.events = EventQueue()
        self.policy_actors = PolicyActorPool(context, num_gpus, self.num_replicas, self.events)
        self.env_actors = EnvActorPool(context, self.policy_actors.handles, self.events)

    def start(self, count: int, wait_for: int | None = None, timeout_s: float = 60) -> list[str]:
        """Return the nodes of the env actors that started."""
        from wpray.orchestration.events import EnvReady

        for _ in range(count):
            self.env_actors.start()
        ready: list[str] = []
        deadline = time.monotonic() + timeout_s
        while len(ready) < (count if wait_for is None else wait_for) and time.monotonic() < deadline:
            event = self.events.next(1.0)
            if isinstance(event, EnvReady):
                ready.append(event.worker)
        return [_node_of(self.env_actors._workers[name].handle) for name in ready]

    def run_a_trial_each(self) -> None:
        from wpray.benchmarks.factory import list_tasks
        from wpray.orchestration.events import AttemptFinished
        from wpray.orchestration.scheduler import Assignment
        from wpray.types import Trial

        task = list_tasks("fake", max_steps=5)[0]
        for number, name in enumerate(self.env_actors._workers):
            self.env_actors.submit(Assignment(Trial(task, number, 0), 1, name))
            deadline = time.monotonic() + 60  # one after the other: each sees where those before it went
            while not isinstance(self.events.next(1.0), AttemptFinished):
                assert time.monotonic() < deadline

    def clients(self) -> list[int]:
        """Return the number of connections of each replica."""
        import ray

        return [
            address.clients for address in ray.get([handle.address.remote() for handle in self.policy_actors.handles])
        ]

    def replica_gpus(self) -> list[tuple[str, tuple[str, ...]]]:
        import ray

        found = ray.get([handle.gpus.remote() for handle in self.policy_actors.handles], timeout=60)
        return [(gpus.node, gpus.names) for gpus in found]

    def render_nodes(self, count: int) -> list[str]:
        """Return the nodes of `count` render actors that start now."""
        import ray

        from wpray.cluster.setup import gpu_places
        from wpray.orchestration.render_actor_pool import RenderActorPool

        pool = RenderActorPool(self.context, count, gpu_places(), self.events)
        ray.get([handle.health.remote() for handle in pool.handles], timeout=60)
        return [_node_of(handle) for handle in pool.handles]


def _node_of(handle: Any) -> str:
    from ray._private.state import actors as state_of

    node: str = state_of(handle._actor_id.hex())["Address"]["NodeID"]
    return node


def test_env_actors_go_to_cpu_nodes_first_and_share_gpu_nodes_when_those_are_full(cluster: Any) -> None:
    gpu = cluster.add_node(num_cpus=3, num_gpus=1, **NODE).node_id
    cpu = cluster.add_node(num_cpus=3, **NODE).node_id
    actors = Actors(cluster)
    assert actors.replica_gpus() == [(gpu, ("0",))]
    assert actors.start(3) == [cpu] * 3
    assert actors.start(1) == [gpu]


@pytest.mark.parametrize("gpus", [(1, 1), (2,)], ids=["two nodes of one", "one node of two"])
def test_auto_gives_every_gpu_a_policy_actor_of_its_own(cluster: Any, gpus: Sequence[int]) -> None:
    nodes = [cluster.add_node(num_cpus=1, num_gpus=count, **NODE).node_id for count in gpus]
    actors = Actors(cluster)
    assert actors.num_replicas == 2
    expected = [(node, (str(number),)) for node, count in zip(nodes, gpus, strict=True) for number in range(count)]
    assert sorted(actors.replica_gpus()) == sorted(expected)
    assert sorted(actors.render_nodes(2)) == sorted(node for node, _ in expected)


def test_env_actors_prefer_the_replica_of_their_node_until_it_is_crowded(cluster: Any) -> None:
    big = cluster.add_node(num_cpus=3, num_gpus=1, **NODE).node_id
    small = cluster.add_node(num_cpus=1, num_gpus=1, **NODE).node_id
    actors = Actors(cluster)
    assert Counter(actors.start(4)) == {big: 3, small: 1}
    order = [node for node, _ in actors.replica_gpus()]
    actors.run_a_trial_each()
    assert dict(zip(order, actors.clients(), strict=True)) == {big: 3, small: 1}
    actors.env_actors.replicas_ready += 2  # as the driver counts two ready replicas, so that loads are compared
    actors.run_a_trial_each()
    assert actors.clients() == [2, 2]


def test_a_node_gets_no_more_env_actors_than_its_memory_holds(cluster: Any) -> None:
    from wpray.cluster.setup import env_actors_that_fit, num_env_actors

    nodes = [cluster.add_node(num_cpus=3, memory=memory, **NODE).node_id for memory in (GIB // 2, 2 * GIB)]
    actors = Actors(cluster, policy="noop")
    each = 200 * 2**20  # of a fake environment
    fitting = [GIB // 2 // each, 3]  # the second is limited by its CPUs
    assert env_actors_that_fit(actors.config) == num_env_actors(actors.config, 1000) == sum(fitting)
    found = Counter(actors.start(sum(fitting) + 2, wait_for=sum(fitting)))
    assert [found[node] for node in nodes] == fitting
    assert not actors.start(0, wait_for=1, timeout_s=3), "what does not fit waits"
    assert actors.env_actors.size == sum(fitting) + 2


def test_custom_resources_and_gpu_shares_are_honoured(cluster: Any) -> None:
    cluster.add_node(num_cpus=4, **NODE)
    special = cluster.add_node(num_cpus=4, num_gpus=2, resources={"env_node": 3, "policy_node": 1}, **NODE).node_id
    options = {"env_resources": {"env_node": 1, "GPU": 0.25}, "policy_resources": {"policy_node": 1}}
    with pytest.raises(BadInputError, match="num_policy_actors"):
        Actors(cluster, ray=options)
    import ray

    ray.shutdown()
    actors = Actors(cluster, ray={**options, "num_policy_actors": 1})
    assert [node for node, _ in actors.replica_gpus()] == [special]
    assert actors.start(4, wait_for=3) == [special] * 3  # the fourth finds no env_node


def _launch(cluster: Any, folder: Path, *options: str, **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wpray.launch", "--task_suite", "fake", "--video.mode", "none"]
    command += ["--ray.address", cluster.address, "--output_dir", str(folder), *options]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=surroundings)


def test_a_run_that_names_its_env_actors_waits_for_nodes_and_auto_says_what_to_do(cluster: Any, tmp_path: Path) -> None:
    auto = _launch(cluster, tmp_path / "auto", "--policy", "noop")
    named = _launch(cluster, tmp_path / "named", "--policy", POLICY, "--num_parallel", "2", "--tasks", "0")
    said, _ = auto.communicate(timeout=60)
    assert auto.returncode == 2 and "give ray.num_env_actors" in said.splitlines()[-1], said
    said, _ = named.communicate(timeout=60)
    assert named.returncode == 2 and "give ray.num_policy_actors" in said.splitlines()[-1], said
    options = ("--num_parallel", "2", "--ray.num_policy_actors", "1", "--num_trials_per_task", "1")
    named = _launch(cluster, tmp_path / "named", "--policy", POLICY, *options)
    assert named.stdout is not None
    assert any("10 episodes, 2 env actors, 1 policy actors" in line for line in named.stdout)
    time.sleep(1)
    assert named.poll() is None
    cluster.add_node(num_cpus=2, num_gpus=1, **NODE)
    said, _ = named.communicate(timeout=90)
    assert named.returncode == 0, said


def test_a_node_with_another_mujoco_is_refused_by_name(cluster: Any, tmp_path: Path) -> None:
    for name, version in (("mujoco", "9.9.9"), ("torch", "9.9")):
        package, about = tmp_path / "site" / name, tmp_path / "site" / f"{name}-{version}.dist-info"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = f"{tmp_path / 'site'}{os.pathsep}{ROOT}"
    cluster.add_node(num_cpus=1, **NODE)
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path}, **NODE)
    run = _launch(cluster, tmp_path / "run", "--policy", "noop")
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 2
    error = said.splitlines()[-1]
    assert error.startswith("error: nodes differ in what decides outcomes:") and "mujoco 9.9.9 instead of 3." in error
    assert "torch 9.9 instead of" in said and "torch" not in error


def test_calls_that_fail_or_do_not_answer_are_left_out(cluster: Any) -> None:
    import ray

    from wpray.cluster.gather import gather_within

    ray.init(address=cluster.address, log_to_driver=False)

    @ray.remote(num_cpus=0)
    def fail() -> None:
        raise ConnectionError

    @ray.remote(num_cpus=1)
    def wait_for_a_node() -> None:
        pass

    failed = fail.remote()
    ray.wait([failed], timeout=60)
    assert list(gather_within([ray.put("a"), failed, wait_for_a_node.remote(), ray.put("b")], 0.5)) == [
        (0, "a"),
        (3, "b"),
    ]


def test_sigterm_is_ours_while_ray_runs_and_after(cluster: Any) -> None:
    from wpray.cluster.setup import running_ray

    config = Config.model_validate({"task_suite": "fake", "policy": "noop", "ray": {"address": cluster.address}})
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running_ray(config), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_ray_or_python_is_one_line(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._private.utils as utils

    from wpray.cluster.setup import start_ray

    monkeypatch.setattr(utils, "compute_version_info", lambda: ("2.1.0", "3.10.1"))
    with pytest.raises(BadInputError) as raised:
        start_ray(Config.model_validate({"task_suite": "fake", "policy": "noop", "ray": {"address": cluster.address}}))
    text = str(raised.value)
    assert "\n" not in text and "Ray: 2.1.0" in text and "Python: 3.10.1" in text and "use the cluster's" in text
