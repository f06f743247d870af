"""What every malformed input must end in: exit code 2 and one line, nothing printed besides, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from wpray.cli.command import run_command


def check_refused(
    place: Path,
    main: Callable[[Sequence[str]], int],
    capsys: pytest.CaptureFixture[str],
    argv: Sequence[str] = (),
) -> str:
    """Run `main` as a command and return its line; `place` is what it must leave as it is."""
    before = _listing(place)
    code = run_command(main, argv)
    said = capsys.readouterr()
    assert code == 2, f"exit code {code}: {said.err}"
    assert said.out == "" and said.err.startswith("error: ")
    assert said.err.count("\n") == 1 and "Traceback" not in said.err, said.err
    assert _listing(place) == before
    return said.err


def _listing(place: Path) -> list[tuple[Path, bytes | None]]:
    return [(path, path.read_bytes() if path.is_file() else None) for path in sorted(place.rglob("*"))]
