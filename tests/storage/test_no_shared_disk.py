"""Nodes need no disk in common with the driver, which alone writes: results reach it through Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import runs
from wpray.results import load

pytestmark = [pytest.mark.faults, pytest.mark.ray]
_OPTIONS = ("--tasks", "0-1", "--num_trials_per_task", "3", "--num_parallel", "2")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a head without CPUs, and a node with an empty, read-only disk in place of the driver's folders."""
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("cannot give a process disks of its own here (needs root)")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"home": 1}, **small})
    ray_command = Path(sys.executable).with_name("ray")
    start = f"{ray_command} start --address {cluster.address} --num-cpus 2 --object-store-memory {100 * 2**20} --block"
    shell = f"mount -t tmpfs -o ro tmpfs {tmp_path} && exec {start}"
    node = subprocess.Popen(["unshare", "--mount", "sh", "-c", shell], env=os.environ, start_new_session=True)
    try:
        yield cluster
    finally:
        node.terminate()
        node.wait(30)
        cluster.shutdown()


def test_only_the_driver_writes_and_everything_reaches_it(cluster: Any, tmp_path: Path) -> None:
    undisturbed = runs.undisturbed(tmp_path / "reference", *_OPTIONS)
    options = ("--ray.address", cluster.address, "--ray.policy_resources", '{"home": 1}', "--video.mode", "all")
    with runs.launched(tmp_path / "run", *_OPTIONS, *options) as run:
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(run.folder, undisturbed)
    done = load(run.folder)
    videos = [done.video(path) for path in done.episodes["video_path"].to_pylist()]
    assert len(videos) == 6 and all(path is not None and path.stat().st_size > 1000 for path in videos)
