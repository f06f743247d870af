"""What a run opens to the network, tells others, and reads."""

from __future__ import annotations

import ast
import contextlib
import pickle
import socket
from pathlib import Path

import psutil
import pytest

from tests.faults import runs
from wpray.cluster.process_env import _PASSED_ON, WORKER_DEFAULTS
from wpray.cluster.setup import _join_options

PACKAGE = runs.ROOT / "wpray"


def test_joining_a_cluster_passes_the_environment_by_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "SSH_AUTH_SOCK", "HTTP_PROXY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    passed = _join_options("auto")["runtime_env"]["env_vars"]
    assert passed.keys() <= {*_PASSED_ON, *WORKER_DEFAULTS}
    assert passed["MUJOCO_GL"] == "egl"
    assert "secret" not in passed.values()


@pytest.mark.faults
def test_a_local_run_listens_on_loopback_only(tmp_path: Path) -> None:
    with runs.launched(tmp_path / "run", "--num_trials_per_task", "10", "--num_parallel", "1") as run:
        assert run.wait_for(lambda: run.finished_trials)
        processes = [psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)]
        listening = {
            (" ".join(process.cmdline())[:60], connection.laddr.ip)
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening
        assert {address for _, address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_a_stranger_at_the_policy_gets_nothing_unpickled(tmp_path: Path) -> None:
    """Bytes that would create a file if anything unpickled them."""
    from tests.faults.policies.poison import Harm
    from tests.faults.policies.slow import SlowPolicy
    from wpray.policies.base import PolicySpec
    from wpray.policies.batching import Batcher
    from wpray.transport.policy_connection import PolicyServer

    harm = tmp_path / "harm"
    attack = pickle.dumps(Harm(Path.touch, harm))
    pickle.loads(attack)
    assert harm.exists()
    harm.unlink()
    batcher = Batcher(SlowPolicy(PolicySpec("slow", False, False, 0, 8)), 8, 0.0)
    server = PolicyServer(batcher, "127.0.0.1", b"k" * 32)
    with socket.create_connection((server.host, server.port), timeout=5) as stranger:
        stranger.recv(1024)  # the challenge
        with contextlib.suppress(ConnectionError):  # hung up on, before the last of it perhaps
            for _ in range(3):
                stranger.sendall(len(attack).to_bytes(4, "big") + attack)
        rest = b"".join(iter(lambda: _received(stranger), b""))
    assert b"WELCOME" not in rest
    assert not harm.exists() and server.clients == 0
    server.close()
    batcher.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_read_through_an_unrestricted_pickle(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
        assert called not in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "joblib.load")
        assert called != "torch.load" or options.get("weights_only") == "True"
        assert called not in ("np.load", "numpy.load") or options.get("allow_pickle", "False") == "False"
