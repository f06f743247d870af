"""JSON files of a checkpoint's folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
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


@contextlib.contextmanager
def in_the_form_of(form: str, path: Path) -> Iterator[None]:
    """Raise BadInputError in place of the errors of code that reads the content of `path`, which has another form."""
    try:
        yield
    except BadInputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadInputError(f"{CHECKPOINT}: {path} is not in the form of {form} ({error}); {_COPY}") from error
