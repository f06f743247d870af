"""The report of a run under way, on a page of this machine that refreshes itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from wpray.errors import BadInputError
from wpray.report.page import build
from wpray.results.reader import load

_LOG = logging.getLogger(__name__)
_LOOPBACK = "127.0.0.1"
_REFRESH_S = 5
_SHARE = 0.1  # largest share of time for making pages, so that a large run is read less often
_TYPES = {".mp4": "video/mp4"}


class LivePage:
    """HTML of the page, made again when it is requested and old enough. Thread-safe."""

    def __init__(self, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._lock = Lock()
        self._html, self._stale_at = "", -1.0
        self.folder: Path | None = None  # of the run, once it has been read

    def html(self) -> str:
        """Return the report as it is now, or why there is none yet."""
        with self._lock:
            began = self._clock()
            if began >= self._stale_at:
                self._html = self._made()
                ended = self._clock()
                self._stale_at = ended + max(1.0, (ended - began) / _SHARE)
            return self._html

    def _made(self) -> str:
        try:
            run = load(self._run)
            self.folder = run.path
            refresh = _REFRESH_S if run.info.get("state") == "running" else None
            return build(run, run.path / "report.html", embed_bytes=0, refresh_s=refresh)
        except BadInputError as error:
            head = f'<meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH_S}"><title>wpray</title>'
            return f"<!doctype html><html><head>{head}</head><body><p>{escape(str(error))}</p></body></html>"


class LiveServer(ThreadingHTTPServer):
    """Server of the page and the run's videos to this machine only."""

    daemon_threads = True

    def __init__(self, run: str, port: int = 0) -> None:
        """Listen on loopback; port 0: any that is free. Raises BadInputError if the port is taken."""
        self.page = LivePage(run)
        try:
            super().__init__((_LOOPBACK, port), _Handler)
        except OSError as error:
            raise BadInputError(f"--port: {port} cannot be used ({error.strerror}); choose another") from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{_LOOPBACK}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        """Answer with the page, or with a video of the run."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (_LOOPBACK, "localhost"):  # another site must not read the page under a name of its own
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        name = unquote(urlsplit(self.path).path).lstrip("/")
        if not name:
            self._send("text/html; charset=utf-8", self.server.page.html().encode("utf-8", "replace"))
        elif (path := self._file(name)) is not None:
            self._send(_TYPES[path.suffix], path.read_bytes())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _file(self, name: str) -> Path | None:
        """Return the path of a video that lies in the run's folder; None for anything else."""
        folder = self.server.page.folder
        if folder is None or "\0" in name:
            return None
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve())
        return path if inside and path.suffix in _TYPES and path.is_file() else None

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""
        _LOG.debug(format, *args)
