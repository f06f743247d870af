"""Which trials of two runs are pairs, and whether the runs may be paired at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wpray.config import EVALUATION_OPTIONS, comparable
from wpray.provenance.record import DECISIVE_PACKAGES, differing
from wpray.results.paired import Pairs
from wpray.results.reader import Run
from wpray.results.sessions import decisive_names, sessions, software
from wpray.types import TrialKey

_SAME_FIELDS = (
    "robot_type",
    "benchmark",
    "task_suite",
    "seed",
    "num_steps_wait",
    "env.protocol",
    "env.max_steps",
    "env.instruction",
    *EVALUATION_OPTIONS,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One trial's rows in both runs; each has an outcome."""

    key: TrialKey
    a: Mapping[str, Any]
    b: Mapping[str, Any]

    @property
    def flipped(self) -> bool:
        """Whether one run solved it and the other did not."""
        return bool(self.a["success"] != self.b["success"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side."""

    pairs: list[Pair]
    errors: int  # trials in both runs, at least one of them without an outcome
    only_in_a: int
    only_in_b: int

    @property
    def counts(self) -> Pairs:
        """All pairs."""
        return count(self.pairs)

    def by_task(self) -> dict[tuple[str, int], list[Pair]]:
        """Pairs of each (suite, task_id), in order."""
        tasks: dict[tuple[str, int], list[Pair]] = {}
        for pair in self.pairs:
            tasks.setdefault(pair.key[:2], []).append(pair)
        return tasks


def compare(a: Run, b: Run) -> Comparison:
    """Pairs the trials of two runs by (suite, task, trial)."""
    rows_a, rows_b = _rows(a), _rows(b)
    shared = sorted(rows_a.keys() & rows_b.keys())
    pairs = [Pair(key, rows_a[key], rows_b[key]) for key in shared]
    complete = [pair for pair in pairs if pair.a["success"] is not None and pair.b["success"] is not None]
    left_out = len(pairs) - len(complete)
    return Comparison(complete, left_out, len(rows_a) - len(shared), len(rows_b) - len(shared))


def count(pairs: Iterable[Pair]) -> Pairs:
    """The four-fold table."""
    outcomes = [(pair.a["success"], pair.b["success"]) for pair in pairs]
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return Pairs(*(outcomes.count(kind) for kind in kinds))


def obstacles(a: Run, b: Run) -> list[str]:
    """Why a trial of `a` is not the same trial in `b`: 'seed (0 in A, 7 in B)'. Empty if it is."""
    fields_a, fields_b = a.info.get("outcome_fields") or {}, b.info.get("outcome_fields") or {}
    lacking = [side for side, fields in (("A", fields_a), ("B", fields_b)) if not fields]
    found = [f"what nobody can tell (the run.json of {' and '.join(lacking)} has no outcome_fields)"] if lacking else []
    fields_a, fields_b = comparable(fields_a), comparable(fields_b)
    found += [_differ(name, fields_a.get(name), fields_b.get(name)) for name in _SAME_FIELDS]
    found += [_differ(name, _versions(a, name), _versions(b, name)) for name in DECISIVE_PACKAGES]
    ours, theirs = _newest(a), _newest(b)
    found += [_differ(name, ours[name], theirs[name]) for name in differing(ours, theirs, _recorded(ours, theirs))]
    found.append(_differ("init_states_file's content", *(_states_digest(run) for run in (a, b))))
    return [text for text in found if text]


def _states_digest(run: Run) -> str | None:
    states = run.info.get("init_states")
    return str(states.get("sha256"))[:12] if isinstance(states, dict) else None


def remarks(a: Run, b: Run) -> list[str]:
    """Differences that pairing survives, but a reader should know."""
    found = [_differ("renderer", _renderers(a), _renderers(b))]
    ours, theirs = _newest(a), _newest(b)
    for name in _recorded(ours, theirs):
        if (name in ours) != (name in theirs):  # one was written before files were digested
            found.append(_differ(name, *(one.get(name, "not recorded") for one in (ours, theirs))))
    return [text for text in found if text]


def _differ(name: str, a: Any, b: Any) -> str:
    return "" if a == b else f"{name} ({_said(a)} in A, {_said(b)} in B)"


def _said(value: Any) -> str:
    return "default" if value is None else str(value)


def _recorded(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the names of what decides and is not in a run.json of before 0.2."""
    return [name for name in decisive_names(ours, theirs) if name not in DECISIVE_PACKAGES]


def _versions(run: Run, package: str) -> str:
    """Of the machines that ran episodes; several if they disagreed."""
    hosts = run.info.get("hosts") or {"": run.info}
    found = {str((host.get("versions") or {}).get(package, "not installed")) for host in hosts.values()}
    return ", ".join(sorted(found))


def _newest(run: Run) -> dict[str, str]:
    """Software of the newest session; the others had the same of what decides, or it would have been refused."""
    return software(sessions(run.info)[-1])


def _renderers(run: Run) -> str:
    hosts = run.info.get("hosts") or {"": run.info}
    return ", ".join(sorted({str(host["renderer"]) for host in hosts.values() if host.get("renderer")}))


def _rows(run: Run) -> dict[TrialKey, Mapping[str, Any]]:
    columns = ["suite", "task_id", "trial", "task_name", "instruction", "success", "num_steps", "video_path"]
    rows = run.episodes.select(columns).to_pylist()
    return {(row["suite"], row["task_id"], row["trial"]): row for row in rows}


def rate(pairs: Iterable[Pair], side: str) -> float:
    """Success rate of side 'a' or 'b' over the pairs; NaN without any."""
    outcomes = [getattr(pair, side)["success"] for pair in pairs]
    return sum(outcomes) / len(outcomes) if outcomes else math.nan
