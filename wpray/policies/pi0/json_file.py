"""JSON files of a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wpray.errors import BadInputError
from wpray.policies.pi0.spec import CHECKPOINT

_COPY = "copy it from its source"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file. Raise BadInputError if it cannot be read or holds none."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{CHECKPOINT}: {path} cannot be read ({error.strerror}); {_COPY}") from error
    except ValueError as error:
        raise BadInputError(f"{CHECKPOINT}: {path} is not JSON ({error}); {_COPY}") from error
    if not isinstance(data, dict):
        raise BadInputError(f"{CHECKPOINT}: {path} must hold a JSON object; {_COPY}")
    return data
