"""Sessions of a run: every start or resume that ran episodes, with its software."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wpray.provenance import record

PROTOCOL = "wpray protocol"
# Software that may change the last bit of a sum, and the commit. A resume with other software is a warning.
_NOTED = ("wpray", "python", "numpy", "torch", "ray", "pyarrow")
_PLACES = {"commit": "git_commit", "host": "host", "platform": "platform", "renderer": "renderer"}
_KEPT = ("versions", "origins", "git_commit", "host", "platform", "hosts", "renderer", "wpray_protocol")


def sessions(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sessions that a run.json lists, oldest first.

    A run.json without sessions is older than they are and is read as one. `ended` is None for a session that is in
    progress or was killed.
    """
    listed = info.get("sessions")
    if isinstance(listed, list) and listed and all(isinstance(session, dict) for session in listed):
        return listed
    ended = None if info.get("state") == "running" else info.get("written_at")
    return [{"started": info.get("started_at"), "ended": ended} | {n: info[n] for n in _KEPT if n in info}]


def software(session: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of a session's packages, its protocol number and its decisive files' digests, by name."""
    versions, origins = (session.get(name) for name in ("versions", "origins"))
    known = {str(name): str(text) for name, text in _mapping(versions).items()}
    return known | record.described(_mapping(origins)) | {PROTOCOL: str(session.get("wpray_protocol", 1))}


def decisive_names(*found: Mapping[str, str]) -> list[str]:
    """Return the names of what decides an outcome: if it differs, a resume is refused and `compare` pairs no trials."""
    return [PROTOCOL, *record.decisive_names(*found)]


def decisive_differences(theirs: Mapping[str, Any], ours: Mapping[str, str]) -> list[str]:
    """Return the differences that forbid resuming the session `theirs`: 'mujoco (3.3.2 there, 3.4.0 here)'."""
    there = software(theirs)
    different = record.differing(there, ours, [*decisive_names(there, ours), record.POLICY])
    return [f"{n} ({there[n]} there, {ours[n]} here)" for n in different]


def noted(earlier: Mapping[str, Any], session: Mapping[str, Any]) -> list[str]:
    """Return the differences of two sessions that are warnings: 'numpy 2.4.6 instead of 2.1.0'."""
    ours, theirs = ({**software(one), **_places(one)} for one in (session, earlier))
    names = [name for name in (*_NOTED, *_PLACES) if name in ours and name in theirs and ours[name] != theirs[name]]
    return [f"{name} {ours[name]} instead of {theirs[name]}" for name in names]


def gpus(listed: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the kinds of GPUs that policies ran on."""
    hosts = [host for session in listed for host in _mapping(session.get("hosts")).values()]
    return {str(host["gpu"]) for host in hosts if _mapping(host).get("gpu")}


def _places(session: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(session[key]) for name, key in _PLACES.items() if session.get(key)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
