"""Output of a benchmark's figures to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wpray.errors import BadInputError


def write_figures(path: Path | None, figures: Any) -> None:
    """Write `figures` as JSON, if a file is named. Raise BadInputError if it cannot be written."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise BadInputError(f"--json {path}: cannot be written ({error.strerror})") from error
