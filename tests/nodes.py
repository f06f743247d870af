"""A Ray cluster on this machine, each node started by the command that cluster/local.yaml runs on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]
_BIN = Path(sys.executable).parent
_SMALL = ("--num-cpus={cpus}", "--object-store-memory=104857600", "--block")


class Nodes:
    """A head without CPUs, and workers; all paths that they see are under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.logs = folder / "ray" / "session_latest" / "logs"
        self._folder = folder
        self._ports = {name: _free_port() for name in ("port", "client", "dashboard")}
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def head(self) -> subprocess.Popen[bytes]:
        return self._started[0]

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self._ports['dashboard']}"

    def start_head(self) -> None:
        """Starts the head, the home of the policy, and waits for its dashboard."""
        head = self._start(
            "head_start_ray_commands",
            [
                f"--dashboard-port={self._ports['dashboard']}",
                f"--temp-dir={self._folder / 'ray'}",
                """--resources='{"home": 1}'""",
            ],
            cpus=0,
        )
        self._wait(head, self._answers)

    def add_worker(self) -> subprocess.Popen[bytes]:
        """Starts a worker node of two CPUs, and waits for it: two of one machine must not start at once."""
        node = self._start("worker_start_ray_commands", [], cpus=2)
        said = self._output(node)
        self._wait(node, lambda: "Ray runtime started" in said.read_text())
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """As if the machine were unplugged."""
        with suppress(psutil.Error):
            for process in psutil.Process(node.pid).children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
        node.kill()
        node.wait()

    def close(self) -> None:
        """Kills all nodes, workers first."""
        for node in reversed(self._started):
            self.kill(node)

    def said(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self._folder.glob("node-*.out"))

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=2):
            return True
        return False

    def _wait(self, node: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert node.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def _output(self, node: subprocess.Popen[bytes]) -> Path:
        return self._folder / f"node-{self._started.index(node)}.out"

    def _start(self, commands: str, options: list[str], cpus: int) -> subprocess.Popen[bytes]:
        small = [option.format(cpus=cpus) for option in _SMALL]
        agent = f"--dashboard-agent-listen-port={_free_port()}"
        command = " ".join([self._adapted(commands), agent, *small, *options])
        with (self._folder / f"node-{len(self._started)}.out").open("wb") as output:
            node = subprocess.Popen(
                ["bash", "-c", command],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environ(),
                start_new_session=True,
            )
        self._started.append(node)
        return node

    def _adapted(self, commands: str) -> str:
        """The file's command with this machine's paths and ports, without the autoscaler, which would use ssh."""
        stop, start = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())[commands]
        assert stop.endswith("ray stop")  # not here: it ends every Ray of the machine
        for theirs, ours in {
            "/opt/wpray/.venv/bin": str(_BIN),
            "6379": str(self._ports["port"]),
            "10001": str(self._ports["client"]),
            "$RAY_HEAD_IP": "127.0.0.1",
            "--autoscaling-config=~/ray_bootstrap_config.yaml": "",
        }.items():
            start = start.replace(theirs, ours)
        return str(start)

    def _environ(self) -> dict[str, str]:
        """A node's own: the test policies are installed there, python is found by the command alone."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "VIRTUAL_ENV"))
        }
        path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != _BIN)
        ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_health_check_period_ms": "1000"}  # a lost node is noticed in 5 s
        return {**kept, **ray, "HOME": str(self.home), "PATH": path, "PYTHONPATH": str(ROOT)}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
