"""Servers for tests: one of openpi's protocol that misbehaves on request, and real packages in their own Python."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from wpray.policies.remote import arrays


@contextmanager
def websocket_server(handle: Callable[[ServerConnection], None], port: int = 0, **options: Any) -> Iterator[str]:
    """Yield the URL of a server that runs `handle` for each connection."""
    server = serve(handle, "127.0.0.1", port, compression=None, max_size=None, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def openpi_server(
    infer: Callable[[Mapping[str, Any]], Any], metadata: Any = None, port: int = 0, **options: Any
) -> Iterator[str]:
    """Yield the URL of a server written from the protocol: `infer` gives a map, or bytes or text to send as they are.

    It may raise ConnectionAbortedError to close the connection without an answer.
    """

    def handle(connection: ServerConnection) -> None:
        connection.send(arrays.pack(metadata or {}))
        try:
            while True:
                answer = infer(arrays.unpack(connection.recv()))
                connection.send(answer if isinstance(answer, bytes | str) else arrays.pack(answer))
        except (ConnectionAbortedError, ConnectionClosed):
            connection.close()

    with websocket_server(handle, port, **options) as url:
        yield url


def own_python(folder: Path, *packages: str) -> Path:
    """Return the Python of a new virtual environment with `packages`; skips where the registry is out of reach."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip(f"the registry gave no {' '.join(packages)} within 300 s")
        if done.returncode:
            pytest.skip(f"cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1][:200]}")
    return python


@contextmanager
def server_process(python: Path, program: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `program`, which prints its port first; yield the process and its URL."""
    command = [str(python), str(program), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={})
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the server did not start"
        _wait_for_listener(int(port))  # because it prints its port before it listens there
        yield process, f"ws://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for_listener(port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)
