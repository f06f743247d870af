"""Servers for tests: one of openpi's protocol that misbehaves on request, and real packages in their own Python."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
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


@contextmanager
def http_server(answer: Callable[[Any], Any], status: int = 200) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield the URL of a server of JSON over HTTP, and the path and body of each request."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, body))
            data = answer(arrays.unpack_json(body))
            data = data if isinstance(data, bytes) else arrays.pack_json(data)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()


_MODALITIES: dict[str, list[str]] = {"video": ["image"]}


@contextmanager
def gr00t_server(
    answer: Callable[[Mapping[str, Any]], Any],
    token: str | None = None,
    modalities: Mapping[str, list[str]] = MappingProxyType(_MODALITIES),
    instants: int = 1,
) -> Iterator[str]:
    """Yield the URL of a server of GR00T's protocol: `answer` gives what `get_action` does, or bytes to send."""
    zmq = pytest.importorskip("zmq")
    server = zmq.Context.instance().socket(zmq.REP)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            if not server.poll(50):
                continue
            asked = arrays.unpack_npy(server.recv())
            if token and asked.get("api_token") != token:
                reply: Any = {"error": "Unauthorized: Invalid API token"}
            elif asked["endpoint"] == "ping":
                reply = {"status": "ok", "message": "Server is running"}
            elif asked["endpoint"] == "get_modality_config":
                said = {
                    name: {"modality_keys": keys, "delta_indices": [0] * instants} for name, keys in modalities.items()
                }
                reply = {
                    name: {"__ModalityConfig_class__": True, "as_json": json.dumps(form)} for name, form in said.items()
                }
            else:
                reply = answer(asked["data"])
            server.send(reply if isinstance(reply, bytes) else arrays.pack_npy(reply))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        over.set()
        thread.join()
        server.close()


@contextmanager
def vla_eval_server(hello: Mapping[str, Any], answer: Any) -> Iterator[str]:
    """Yield the URL of a server that says `hello` and then what `answer` makes of the messages' count and payload."""

    def handle(connection: ServerConnection) -> None:
        count = 0
        try:
            while True:
                message = arrays.unpack_str_keys(connection.recv())  # type: ignore[arg-type]
                said = None
                if message["type"] == "hello":
                    said = {"type": "hello", "payload": {"protocol_version": 1, **hello}}
                elif message["type"] == "observation":
                    said, count = answer(count, message["payload"]), count + 1
                if said is not None:
                    connection.send(
                        said
                        if isinstance(said, bytes | str)
                        else arrays.pack_str_keys({"seq": message["seq"], "timestamp": 0.0, **said})
                    )
        except (ConnectionClosed, ConnectionAbortedError):
            connection.close()

    with websocket_server(handle) as url:
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
