"""The driver on the cluster: a run submitted through Ray Jobs to three nodes, of which one goes and another comes.

Its nodes are started by the commands of cluster/local.yaml, so this is the on-premise path as well.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults import runs
from tests.faults.conftest import Record
from tests.faults.test_smoke import FEW
from tests.nodes import Nodes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
SECRET = {"AWS_SECRET_ACCESS_KEY": "do-not-send-me", "HF_TOKEN": "nor-me"}
OPTIONS = ["--task_suite", "fake", "--policy", "tests.gated_policy", *FEW, "--video.mode", "none"]
PLACED = ["--ray.policy_resources", '{"home": 1}', "--output_dir", "results"]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head and a worker; Ray's sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="wpray-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(Path(folder))
        monkeypatch.setenv("WPRAY_TEST_GATE", str(nodes.home / "gate"))
        try:
            nodes.start_head()
            yield nodes
        finally:
            nodes.close()


def test_a_submitted_run_survives_its_nodes_and_its_onlooker_and_comes_home(
    nodes: Nodes, tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed = reference(*FEW)
    first = nodes.add_worker()
    nodes.add_worker()
    _wait_for(nodes, lambda: len(_alive(nodes)) == 3)
    said = _launch(nodes, tmp_path, *OPTIONS, *PLACED, "--ray.follow", "false")
    follow_it = _advice(said)

    onlooker = _start(nodes, tmp_path, *follow_it)
    _read_until(onlooker, lambda line: " trial " in line and "steps" in line)
    (nodes.home / "gate").touch()  # held in the middle until its nodes have changed
    onlooker.send_signal(signal.SIGINT)
    rest, _ = onlooker.communicate(timeout=30)
    assert onlooker.returncode == 130 and _advice(rest) == follow_it, rest

    _wait_for(nodes, lambda: _env_actors(first))
    nodes.kill(first)
    joined = nodes.add_worker()
    _wait_for(nodes, lambda: _env_actors(joined))
    _no_secrets([*_env_actors(joined), *_drivers(nodes)])
    (nodes.home / "gate").unlink()

    said = _launch(nodes, tmp_path, *follow_it, "--output_dir", "results")
    assert "Overall success rate: " in said and re.search(r"^Fetched to results \(\d+ files", said, re.MULTILINE), said
    runs.assert_same(tmp_path / "results", undisturbed)
    survived("submitted run: worker node lost", 1)
    survived("submitted run: worker node joins", 1, "used; same table")
    survived("submitted run: workstation goes away", 1, "goes on; followed again")

    said = _launch(nodes, tmp_path, *OPTIONS, *PLACED)
    assert "24 of 24 episodes are finished" in said and "of them here before)" in said, said
    runs.assert_same(tmp_path / "results", undisturbed)


def _start(nodes: Nodes, here: Path, *argv: str) -> subprocess.Popen[str]:
    """The command on the workstation, which has secrets and another home."""
    if "--ray.submit" not in argv:
        argv = (*argv, "--ray.submit", nodes.dashboard)
    return subprocess.Popen(
        [sys.executable, "-m", "wpray.launch", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT), **SECRET},
    )


def _launch(nodes: Nodes, here: Path, *argv: str) -> str:
    process = _start(nodes, here, *argv)
    try:
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said[-3000:] + nodes.said()
    return said


def _advice(said: str) -> list[str]:
    """The arguments of the command that is said to follow the job."""
    found = re.search(r"follow and fetch it: python -m wpray.launch (--ray.submit \S+ --ray.job \S+); stop it: ", said)
    assert found, said
    return found[1].split()


def _read_until(process: subprocess.Popen[str], found: Callable[[str], bool]) -> None:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found(line):
            return
    raise AssertionError("".join(lines))


def _wait_for(nodes: Nodes, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, nodes.said()
        time.sleep(0.1)


def _alive(nodes: Nodes) -> list[object]:
    from ray.util.state import list_nodes

    found: list[object] = list_nodes(address=nodes.dashboard, filters=[("state", "=", "ALIVE")])
    return found


def _env_actors(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return _processes(node.pid, runs.ENV + ".run")


def _drivers(nodes: Nodes) -> list[psutil.Process]:
    return _processes(nodes.head.pid, "wpray.jobs.remote")


def _processes(root: int, title: str) -> list[psutil.Process]:
    try:
        found = psutil.Process(root).children(recursive=True)
        return [process for process in found if title in " ".join(process.cmdline())]
    except psutil.Error:
        return []


def _no_secrets(processes: list[psutil.Process]) -> None:
    assert len(processes) >= 2
    for process in processes:
        assert not SECRET.keys() & process.environ().keys()
