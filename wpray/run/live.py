"""Live report of a run, in a separate process, so that a page costs the driver nothing."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
_END_S = 5.0


@contextlib.contextmanager
def live_report(folder: Path) -> Iterator[None]:
    """Serve the report of the run in `folder` on this machine until the context ends; log its address."""
    command = [sys.executable, "-m", "wpray.report", str(folder), "--live"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            address = server.stdout.readline().strip() if server.stdout is not None else ""
            if address:
                _LOG.warning("%s", address)  # a terminal shows warnings only
            else:
                _LOG.warning("--live: the page could not be served; the run goes on without")
            yield
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_END_S)
            server.kill()
