"""Paths as people write them: `~` and environment variables are expanded once, where a path is read."""

from __future__ import annotations

import os
import re

LIKE_A_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one slash, too: `Path` would make a folder called "s3:"
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)(\}?))")
_WRITTEN_NUL = re.compile(r"\\(0|x00|u0000)")  # a NUL as a shell passes it on
_LONGEST = 4096  # bytes of a path, on Linux
_LONGEST_NAME = 255  # bytes of a file's or folder's name


def is_url(path: str) -> bool:
    """Return whether `path` names a store instead of a file."""
    return LIKE_A_URL.match(path) is not None


def depends_on_environment(path: str) -> bool:
    """Return whether `expand` gives another path on another machine."""
    return not is_url(path) and (path.startswith("~") or _VARIABLE.search(path) is not None)


def expand(path: str) -> str:
    """Return `path` with environment variables and then `~` or `~USER` expanded, each once; a URL as it is.

    Raises ValueError for a variable that is not set or empty, a user without a home, and what `check_name` refuses.
    """
    if is_url(path):
        return path
    path = _VARIABLE.sub(_value, path)
    if path.startswith("~") and not is_url(path):
        path = os.path.expanduser(path)
        if path.startswith("~"):
            user = path.partition("/")[0]
            raise ValueError(f"{user} is nobody's home here; write ./{user} if it is the name of a file")
    return check_name(path)


def check_name(path: str) -> str:
    """Return `path` if it can be the name of a file and be written into the results, else raise ValueError."""
    if any(ord(char) < 32 or ord(char) == 127 for char in path) or _WRITTEN_NUL.search(path):
        raise ValueError("must be a file name, which holds neither NUL nor other control characters")
    try:
        size, longest = len(path.encode()), max(len(name.encode()) for name in path.split("/"))
    except UnicodeEncodeError:
        raise ValueError("must be a file name in UTF-8") from None
    if not is_url(path) and (size >= _LONGEST or longest > _LONGEST_NAME):
        raise ValueError(f"must be a file name: at most {_LONGEST - 1} bytes, {_LONGEST_NAME} between two slashes")
    return path


def _value(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if not name.isidentifier() or (found[2] is not None and not found[3]):
        raise ValueError(f"{found[0]} is not an environment variable; write $NAME or ${{NAME}}")
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(f"the environment variable {name} is {'empty' if name in os.environ else 'not set'}")
    return value
