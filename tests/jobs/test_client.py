"""The Jobs server may be absent, broken or something else; files are read in bounded memory."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from wpray.cli.configuration import read_config
from wpray.errors import BadInputError
from wpray.jobs.client import JobsClient, connect
from wpray.jobs.submit import submit

ROOT = Path(__file__).parents[2]
FAKE = ["--task_suite", "fake", "--policy", "noop"]
MIB = bytes(2**20)
VERSION = json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})
Replies = dict[str, tuple[int, str]]


class Server(http.server.BaseHTTPRequestHandler):
    """Handler that answers GET and POST from `replies`, path -> (status, body), and everything else with 404."""

    replies: Replies
    first_has_come: threading.Event

    def do_GET(self) -> None:
        if self.path.startswith("/api/v0/logs/file?"):
            self._large_file()
            return
        status, body = self.replies.get(self.path, (404, "not found"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def _large_file(self) -> None:
        """Send the rest only after the client has read the beginning."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(MIB)
        self.wfile.flush()
        if self.first_has_come.wait(10):
            self.wfile.write(MIB)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    do_PUT = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, Replies, threading.Event]]:
    """Yield the address of an HTTP server, its replies, and the event that releases the rest of a large file."""
    replies: Replies = {}
    handler = type("Handler", (Server,), {"replies": replies, "first_has_come": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", replies, handler.first_has_come
        running.shutdown()


def _refused(*argv: str) -> str:
    with pytest.raises(BadInputError) as refused:
        submit(read_config([*FAKE, *argv]))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_where_nobody_listens_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")  # must not override the configuration
    assert _refused("--ray.submit", "http://127.0.0.1:1").startswith(
        "ray.submit http://127.0.0.1:1: nobody answers as a Ray dashboard"
    )


def test_a_server_that_is_no_dashboard(server: tuple[str, Replies, threading.Event]) -> None:
    address, replies, _ = server
    assert "not a Ray dashboard" in _refused("--ray.submit", address)
    replies["/api/version"] = (200, "<html>a router</html>")
    assert "Ray dashboard" in _refused("--ray.submit", address)
    replies["/api/version"] = (200, "{}")
    assert "not a Ray dashboard" in _refused("--ray.submit", address)


def test_a_head_without_a_job_agent(server: tuple[str, Replies, threading.Event]) -> None:
    address, replies, _ = server
    replies["/api/version"] = (200, VERSION)
    assert "the cluster did not take the job" in _refused("--ray.submit", address)  # accepts no package
    replies["/api/jobs/"] = (500, "No available agent to submit job, please try again later.")
    said = _refused("--ray.submit", address)
    assert "ray[default]" in said
    assert "ray.job: the cluster knows no job nosuch" in _refused("--ray.submit", address, "--ray.job", "nosuch")


def test_a_head_whose_job_agent_is_late(
    server: tuple[str, Replies, threading.Event], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, replies, _ = server
    replies["/api/version"] = (200, VERSION)
    outcomes = iter([RuntimeError("No available agent to submit job"), None])

    def submit_job(client: JobsClient, **_: object) -> None:
        if (error := next(outcomes)) is not None:
            raise error

    monkeypatch.setattr(JobsClient, "submit_job", submit_job)
    assert submit(read_config([*FAKE, "--ray.submit", address, "--ray.follow", "false"])) == 0
    assert "submitted as wpray-" in capsys.readouterr().out and next(outcomes, "used up") == "used up"


def test_a_workstation_without_the_client_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'wpray[cluster]'" in _refused("--ray.submit", "http://127.0.0.1:1")


def test_without_aiohttp_the_command_itself_says_so(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['aiohttp'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'aiohttp' else find(name, *a)\n" + blocked
    )
    done = subprocess.run(
        [sys.executable, "-m", "wpray.launch", *FAKE, "--ray.submit", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ray.submit needs") and "wpray[cluster]" in done.stderr


def test_a_file_passes_through_and_is_never_held_whole(server: tuple[str, Replies, threading.Event]) -> None:
    address, replies, first_has_come = server
    replies["/api/version"] = (200, VERSION)
    with closing(connect(address).read_log("node", "large")) as chunks:
        assert next(chunks) == MIB
        first_has_come.set()
        assert b"".join(chunks) == MIB
