"""Clusters that do not answer are reported in one line within seconds; slow ones are joined."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray._private import services

from wpray.cluster import setup
from wpray.cluster.probe import ANSWER_S, CONNECT_S, check_answers, host_and_port
from wpray.config import Config
from wpray.errors import BadInputError

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def _listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield a port of this machine at which `serve` gets every connection."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _silent() -> Iterator[int]:
    """Yield a port whose connections the kernel accepts and nobody serves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _config(address: str) -> Config:
    return Config.model_validate({"task_suite": "fake", "policy": "noop", "ray": {"address": address}})


@pytest.fixture
def no_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if Ray is called, because it would try for minutes."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("Ray was asked")

    monkeypatch.setattr("ray.init", forbidden)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("ray://[::1]:10001/name?space", ("::1", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("local", None),
        ("head:port", None),
        ("head:99999999", None),
    ],
)
def test_the_port_is_read_from_every_form_of_address(address: str, found: tuple[str, int] | None) -> None:
    assert host_and_port(address) == found


def test_the_two_waits_leave_time_for_the_rest_of_a_line_within_20_seconds() -> None:
    assert CONNECT_S + ANSWER_S <= 15


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_a_port_without_a_listener_gives_one_line(form: str, no_init: None, monkeypatch: pytest.MonkeyPatch) -> None:
    port = _closed_port()
    if form == "auto":
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(BadInputError, match=rf"cannot start or join Ray \(nobody listens at 127\.0\.0\.1:{port}: "):
        setup.start_ray(_config(form.format(port)))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_a_silent_port_gives_one_line(form: str, no_init: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "check_answers", lambda host, port: check_answers(host, port, answer_s=0.2))
    with _silent() as port:
        if form == "auto":
            monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{port}")
        with pytest.raises(BadInputError, match=rf"\(no Ray answers at 127\.0\.0\.1:{port} within 0 s: timed out\)"):
            setup.start_ray(_config(form.format(port)))


def test_a_port_that_closes_every_connection_is_no_ray() -> None:
    said = r"no Ray answers at .*(closed the connection|reset by peer)"
    with _listening(lambda connection: connection.close()) as port, pytest.raises(ConnectionError, match=said):
        check_answers("127.0.0.1", port)


def test_a_cluster_that_takes_its_time_is_waited_for() -> None:
    def slowly(connection: socket.socket) -> None:
        time.sleep(0.5)
        connection.sendall(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        connection.close()

    with _listening(slowly) as port:
        check_answers("127.0.0.1", port)


def test_with_tls_an_alert_is_an_answer_and_silence_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")

    def alert(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(bytes((21, 3, 3, 0, 2, 2, 40)))  # fatal: handshake failure

    with _listening(alert) as port:
        check_answers("127.0.0.1", port)
    with _silent() as port, pytest.raises(ConnectionError, match="no Ray answers"):
        check_answers("127.0.0.1", port, answer_s=0.2)


def test_auto_without_a_ray_here_says_so(no_init: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(services, "_find_address_from_flag", lambda flag: set())
    with pytest.raises(BadInputError, match=r"ray\.address auto: .*no Ray runs on this machine; start one with"):
        setup.start_ray(_config("auto"))


def test_auto_does_not_wait_for_a_ray_that_has_died_here(
    no_init: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A crash leaves Ray's address in a file."""
    port = _closed_port()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(services, "_find_address_from_flag", lambda flag: set())
    with pytest.raises(BadInputError, match=rf"nobody listens at \S+:{port}: "):
        setup.start_ray(_config("auto"))


def test_a_dead_cluster_is_one_line_of_ours_and_exit_code_2(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": f"127.0.0.1:{_closed_port()}"}
    argv = ["--task_suite", "fake", "--policy", "noop", "--ray.address", "auto"]
    command = [sys.executable, "-m", "wpray.launch", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=75)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: ray\.address auto \(RAY_ADDRESS\): [^\n]*nobody listens[^\n]*\n", done.stderr)
    assert not any(tmp_path.iterdir())
