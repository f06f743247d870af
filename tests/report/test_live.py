"""The live report: what it serves and to whom, and the page in a browser while a run grows."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.results.recorded import write_run
from wpray.report.live import LivePage, LiveServer

BROWSER = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(str(tmp_path / "run")) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def _get(server: LiveServer, path: str, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_it_waits_for_a_run_and_shows_it_from_its_parts(server: LiveServer, tmp_path: Path) -> None:
    status, page = _get(server, "/")
    assert status == 200 and b"http-equiv" in page and b"holds no run" in page
    write_run(tmp_path / "run", [[True, False]], merged=False, state="running")
    server.page._stale_at = -1.0
    status, page = _get(server, "/")
    assert status == 200 and b'http-equiv="refresh"' in page and b"50.0%" in page
    write_run(tmp_path / "run", [[True, True]], state="finished")
    server.page._stale_at = -1.0
    status, page = _get(server, "/")
    assert b'http-equiv="refresh"' not in page and b"100.0%" in page


def test_it_serves_the_runs_videos_and_nothing_else_to_nobody_else(server: LiveServer, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [[True]])
    (tmp_path / "run" / "videos").mkdir()
    (tmp_path / "run" / "videos" / "a b.mp4").write_bytes(b"film")
    (tmp_path / "other.mp4").write_bytes(b"other")
    (tmp_path / "run" / "videos" / "out.mp4").symlink_to(tmp_path / "other.mp4")
    assert _get(server, "/videos/a%20b.mp4")[0] == 404  # before the page that names it
    _get(server, "/")
    assert _get(server, "/videos/a%20b.mp4") == (200, b"film")
    for path in ("/run.json", "/../other.mp4", "/%2e%2e/other.mp4", "/videos/out.mp4", "/videos/%00.mp4", "/videos"):
        assert _get(server, path)[0] == 404, path
    assert _get(server, "/", host="evil.example:80")[0] == 403
    assert server.server_address[0] == "127.0.0.1"


def test_a_large_run_is_read_less_often(tmp_path: Path) -> None:
    times = iter([0.0, 4.0, 10.0, 43.9, 44.1, 45.0])
    page = LivePage(str(tmp_path), lambda: next(times))
    for _ in range(3):
        page.html()
    assert page._stale_at == 44.0  # after 4 s of work, not before 40 s have passed
    page.html()
    assert page._stale_at > 50


@pytest.mark.skipif(BROWSER is None, reason="no Chromium (apt-get install chromium)")
def test_a_browser_shows_it(server: LiveServer, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [[True, True, False, True]], merged=False, state="running")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'home'}"]
    done = subprocess.run([*command, "--dump-dom", server.url], capture_output=True, text=True, timeout=120, check=True)
    assert "75.0%" in done.stdout and '<span class="badge running">running</span>' in done.stdout
