"""Checks of a machine: a line each with its remedy, and programs whose crash is a finding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import wpray
from wpray.errors import BadInputError

CheckStatus = Literal["pass", "warn", "fail"]
Known = tuple[str, str, str]  # words of a failed program's messages, what they mean, remedy

_TIMEOUT_S = 300
_OSMESA = "as root: apt-get install -y libosmesa6 libgl1 libglib2.0-0"
_KNOWN: tuple[Known, ...] = (
    ("glGetError", "PyOpenGL found no libOSMesa", _OSMESA),
    ("OSMesa", "libOSMesa cannot be loaded", _OSMESA),
    ("EGL", "EGL gives no context", "env.renderer: osmesa; in a container: NVIDIA_DRIVER_CAPABILITIES=all"),
)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of a check."""

    name: str
    status: CheckStatus
    message: str
    remedy: str = ""  # a command or a setting

    @property
    def text(self) -> str:
        """Message and remedy, in one line."""
        parts = [self.message, self.remedy] if self.remedy else [self.message]
        return " ".join("; ".join(parts).split())

    @classmethod
    def of_error(cls, name: str, error: BadInputError) -> CheckResult:
        """Return a failed check whose error names the remedy."""
        return cls(name, "fail", str(error))


@dataclass(frozen=True, slots=True)
class Finding:
    """Values that a probe found, or why it found none."""

    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    remedy: str = ""


def run_probe(
    module: str, name: str, *arguments: str, environ: dict[str, str] | None = None, known: Sequence[Known] = ()
) -> Finding:
    """Run `python -m MODULE NAME ARGUMENT ...` without a terminal; its last line is JSON.

    `known` explains messages of its failures, before what is known of OpenGL does.
    """
    package = str(Path(wpray.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    surroundings = {**(os.environ if environ is None else environ), "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, name, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=surroundings,
        )
    except subprocess.TimeoutExpired:
        return Finding(error=f"no answer within {_TIMEOUT_S} s")
    if done.returncode == 0:
        return Finding(json.loads(done.stdout.splitlines()[-1]))
    return explained(done.returncode, done.stderr, known)


def explained(code: int, stderr: str, known: Sequence[Known] = ()) -> Finding:
    """Return what a failed program's exit code and messages mean."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message")
    if code < 0:
        last = f"died of {signal.Signals(-code).name}"
    for words, meaning, remedy in (*known, *_KNOWN):
        if words in stderr:
            return Finding(error=f"{meaning} ({last[:200]})", remedy=remedy)
    return Finding(error=last[:300])
