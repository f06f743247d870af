"""openpi's protocol: against the real server, and against one that hangs, closes, talks nonsense and refuses."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection

from tests.policies.remote.servers import openpi_server, server_process, websocket_server
from wpray.errors import InvalidRequestError
from wpray.policies.remote import arrays, websocket
from wpray.policies.remote.openpi_channel import OpenpiChannel
from wpray.policies.remote.pool import ServerPool
from wpray.policies.remote.trouble import RefusedError, ServerTrouble

QUESTION = {
    "observation/image": np.full((224, 224, 3), 51, np.uint8),
    "observation/wrist_image": np.full((224, 224, 3), 102, np.uint8),
    "observation/state": np.arange(8) / 8,
    "prompt": "pick up the bowl",
}
ACTIONS = np.arange(14, dtype=np.float32).reshape(2, 7)


def _echo(question: Mapping[str, Any]) -> dict[str, Any]:
    return {"actions": ACTIONS, "prompt": question["prompt"]}


PROGRAM = Path(__file__).parent / "real_openpi_server.py"


def test_the_real_server_answers_and_survives_its_own_error(openpi_python: Path) -> None:
    with server_process(openpi_python, PROGRAM) as (_, url):
        pool = ServerPool("openpi", [url], lambda url: OpenpiChannel(url, None, 30.0))
        pool.wait_for_server()
        assert pool.facts == {url: {"checkpoint": "echo"}}
        actions = pool.call(QUESTION)["actions"]
        assert actions.shape == (10, 7) and actions.dtype == np.float32
        np.testing.assert_allclose(actions[3], [0.3, 0.2, 0.4, 0, 0.125, 0.25, -1], rtol=1e-6)
        with pytest.raises(InvalidRequestError, match="ValueError: cannot do that") as failure:
            pool.call({**QUESTION, "prompt": "fail"})
        assert "Traceback (most recent call last)" in str(failure.value)
        assert "infer_ms" in pool.call(QUESTION)["server_timing"]
        pool.close()


def test_the_real_server_may_be_late_be_killed_and_come_back(openpi_python: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines: list[str] = []
    pool = ServerPool(
        "openpi", [f"ws://127.0.0.1:{port}"], lambda url: OpenpiChannel(url, None, 30.0), note=lines.append
    )
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(pool.call(QUESTION) for _ in range(2)))
    asking.start()
    while not lines:
        time.sleep(0.05)
    assert "Connection refused" in lines[0]
    with server_process(openpi_python, PROGRAM, str(port)):
        asking.join(60)
    assert len(answers) == 2
    asking = threading.Thread(target=lambda: answers.append(pool.call(QUESTION)))
    asking.start()
    with server_process(openpi_python, PROGRAM, str(port)):
        asking.join(60)
    assert len(answers) == 3 and np.array_equal(answers[0]["actions"], answers[2]["actions"])
    assert sum("not answer" in line for line in lines) == 2 and sum("answers again" in line for line in lines) == 2


def test_the_key_travels_and_a_wrong_one_is_refused() -> None:
    def check(connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Authorization") != "Api-Key secret":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no\n")
        return None

    with openpi_server(_echo, process_request=check) as url:
        channel = OpenpiChannel(url, "secret", 5.0)
        assert channel.call(QUESTION)["prompt"] == "pick up the bowl"
        channel.close()
        for key in (None, "wrong"):
            with pytest.raises(RefusedError, match="401 Unauthorized"):
                OpenpiChannel(url, key, 5.0)


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb({b"__ndarray__": True}), b"\x93", os.urandom(50)],
    ids=["empty", "unused byte", "a list", "half an array", "cut off", "noise"],
)
def test_nonsense_is_trouble(nonsense: bytes) -> None:
    with openpi_server(lambda question: nonsense) as url:
        channel = OpenpiChannel(url, None, 5.0)
        with pytest.raises(ServerTrouble, match="answers nonsense"):
            channel.call(QUESTION)
        channel.close()


def test_a_text_in_place_of_metadata_is_the_servers_own_error() -> None:
    server = websocket_server(lambda connection: connection.send("Traceback:\nOSError: no weights"))
    with server as url, pytest.raises(ServerTrouble, match="OSError: no weights"):
        OpenpiChannel(url, None, 5.0)


def test_a_closed_connection_is_trouble() -> None:
    def leave(question: Mapping[str, Any]) -> Any:
        raise ConnectionAbortedError

    with openpi_server(leave) as url:
        channel = OpenpiChannel(url, None, 5.0)
        with pytest.raises(ServerTrouble):
            channel.call(QUESTION)


def test_a_hang_is_said_and_then_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_REMIND_S", 0.3)
    lines: list[str] = []
    over = threading.Event()

    def hang(question: Mapping[str, Any]) -> dict[str, Any]:
        over.wait(20)
        return {}

    with openpi_server(hang) as url:
        channel = OpenpiChannel(url, None, 2.0, lines.append)
        with pytest.raises(ServerTrouble, match="no answer within 2 s"):
            channel.call(QUESTION)
        over.set()
        channel.close()
    assert lines and lines[0] == "no answer for 0 s; waiting"


def test_another_protocol_on_the_port_is_trouble() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        accepted, _ = listener.accept()
        accepted.recv(100)
        accepted.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        accepted.close()

    threading.Thread(target=talk, daemon=True).start()
    with pytest.raises(ServerTrouble, match="no websocket server"):
        OpenpiChannel(f"ws://127.0.0.1:{listener.getsockname()[1]}", None, 5.0)


def test_a_port_that_accepts_and_says_nothing_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_OPEN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ServerTrouble, match="timed out"):
        OpenpiChannel(f"ws://127.0.0.1:{listener.getsockname()[1]}", None, 5.0)


def test_a_frozen_process_is_trouble_even_if_it_takes_no_bytes(
    openpi_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_SEND_S", 1)
    big = {**QUESTION, "ballast": np.zeros(30_000_000, np.uint8)}  # more than the sockets buffer
    with server_process(openpi_python, PROGRAM) as (process, url):
        channel = OpenpiChannel(url, None, 2.0)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(ServerTrouble):
            channel.call(big)
        channel.close()
        assert time.monotonic() - began < 10


def test_metadata_with_arrays_are_read() -> None:
    with openpi_server(_echo, {"stats": np.arange(3), "name": "pi0"}) as url:
        channel = OpenpiChannel(url, None, 5.0)
        assert channel.facts == {"name": "pi0", "stats": [0, 1, 2]}
        channel.close()


def test_what_is_sent_is_what_the_published_client_sends() -> None:
    """The codec's bytes are compared with recorded ones in test_arrays; here, that nothing is added to a frame."""
    frames: list[bytes] = []

    def keep(connection: ServerConnection) -> None:
        connection.send(arrays.pack({}))
        frames.append(connection.recv())  # type: ignore[arg-type]
        connection.send(arrays.pack({"actions": ACTIONS}))

    with websocket_server(keep) as url:
        OpenpiChannel(url, None, 5.0).call(QUESTION)
    assert frames == [arrays.pack(QUESTION)]
