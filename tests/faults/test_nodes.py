"""Worker nodes that disappear and that join, with Ray's multi-node cluster on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults import runs
from tests.faults.conftest import FAKE, Record

pytestmark = pytest.mark.faults


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, where the policy lives, and a worker node of two."""
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))  # the nodes' processes need the test policies
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"home": 1}, **_SMALL})
    cluster.add_node(num_cpus=2, **_SMALL)
    try:
        yield cluster
    finally:
        cluster.shutdown()


_SMALL = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


def test_a_node_that_disappears_and_one_that_joins(
    cluster: Any, tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*FAKE)
    options = ("--num_trials_per_task", "10", "--ray.address", cluster.address, "--ray.policy_resources", '{"home": 1}')
    secret = {"AWS_SECRET_ACCESS_KEY": "do-not-send-me"}
    with runs.launched(tmp_path / "run", *options, **secret) as run:
        assert run.wait_for(lambda: run.finished_trials > 5), run.text
        joined = cluster.add_node(num_cpus=2, **_SMALL)
        assert run.wait_for(lambda: _env_actors(joined)), "the node that joined is not used"
        _no_secret(_env_actors(joined))
        done = run.finished_trials
        first = next(node for node in cluster.worker_nodes if node is not joined)
        cluster.remove_node(first, allow_graceful=False)
        assert run.wait_for(lambda: run.finished_trials > done + 5)
        again = cluster.add_node(num_cpus=2, **_SMALL)
        cluster.remove_node(joined, allow_graceful=False)
        assert run.wait_for(lambda: _env_actors(again)), "the node that joined is not used"
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    survived("worker node lost", 2)
    survived("worker node joins", 2, "used; same table")


def _env_actors(node: Any) -> list[psutil.Process]:
    raylets = [info.process.pid for info in node.all_processes.get("raylet", [])]
    try:
        children = [child for pid in raylets for child in psutil.Process(pid).children()]
        return [child for child in children if " ".join(child.cmdline()).startswith(runs.ENV + ".run")]
    except psutil.Error:
        return []


def _no_secret(actors: list[psutil.Process]) -> None:
    for actor in actors:
        environ = actor.environ()
        assert "AWS_SECRET_ACCESS_KEY" not in environ
        assert environ.get("OMP_NUM_THREADS") == "1", "what is on the allow-list is passed"
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ
