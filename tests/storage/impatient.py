"""`python -m wpray.launch` that waits seconds instead of minutes for an unreachable store."""

from __future__ import annotations

import sys

from wpray.cli.command import run_command
from wpray.launch import main
from wpray.orchestration import row_sink
from wpray.storage import uploader

uploader.MOST_BEHIND, uploader.PATIENCE_S = 2, 12.0
row_sink._PAUSE_S = 0.5

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
