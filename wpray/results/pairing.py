"""Pairs of trials of two runs, and the reasons why two runs may not be paired."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wpray.provenance.record import DECISIVE_PACKAGES, differing
from wpray.provenance.settings import EVALUATION_OPTIONS, comparable
from wpray.results.paired import PairCounts
from wpray.results.reader import Run
from wpray.results.sessions import decisive_names, sessions, software
from wpray.types import TaskKey, TrialKey

OF_A_SUITE = ("task_suite", "env.max_steps", "env.instruction")
_SAME_FIELDS = ("robot_type", "benchmark", "seed", "num_steps_wait", "env.protocol", *EVALUATION_OPTIONS, *OF_A_SUITE)
CONDITIONS = frozenset({*_SAME_FIELDS, "env.renderer"})  # settings that are not the policy's
SIMULATOR = DECISIVE_PACKAGES


@dataclass(frozen=True, slots=True)
class Pair:
    """Rows of one trial in two runs; both have an outcome."""

    key: TrialKey
    a: Mapping[str, Any]
    b: Mapping[str, Any]

    @property
    def flipped(self) -> bool:
        """True if one run solved the trial and the other did not."""
        return bool(self.a["success"] != self.b["success"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of two runs."""

    pairs: list[Pair]
    errors: int  # trials in both runs, at least one of them without an outcome
    only_in_a: int
    only_in_b: int

    @property
    def counts(self) -> PairCounts:
        """Counts of all pairs."""
        return count(self.pairs)

    def by_task(self) -> dict[TaskKey, list[Pair]]:
        """Count the pairs of each (suite, task_id), in order."""
        tasks: dict[TaskKey, list[Pair]] = {}
        for pair in self.pairs:
            tasks.setdefault(pair.key.task, []).append(pair)
        return tasks


def compare(a: Run, b: Run) -> Comparison:
    """Pair the trials of two runs by (suite, task, trial)."""
    rows_a, rows_b = _rows(a), _rows(b)
    shared = sorted(rows_a.keys() & rows_b.keys())
    pairs = [Pair(key, rows_a[key], rows_b[key]) for key in shared]
    complete = [pair for pair in pairs if pair.a["success"] is not None and pair.b["success"] is not None]
    left_out = len(pairs) - len(complete)
    return Comparison(complete, left_out, len(rows_a) - len(shared), len(rows_b) - len(shared))


def count(pairs: Iterable[Pair]) -> PairCounts:
    """Return the fourfold table of the pairs."""
    outcomes = [(pair.a["success"], pair.b["success"]) for pair in pairs]
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return PairCounts(*(outcomes.count(kind) for kind in kinds))


def obstacles(a: Run, b: Run, ignored: Collection[str] = ()) -> list[str]:
    """Return why a trial of `a` is not the same trial in `b`: 'seed (0 in A, 7 in B)'. Empty if it is.

    Settings in `ignored` may differ.
    """
    fields_a, fields_b = a.info.get("outcome_fields") or {}, b.info.get("outcome_fields") or {}
    lacking = [side for side, fields in (("A", fields_a), ("B", fields_b)) if not fields]
    found = [f"what nobody can tell (the run.json of {' and '.join(lacking)} has no outcome_fields)"] if lacking else []
    fields_a, fields_b = comparable(fields_a), comparable(fields_b)
    shared = _suites(fields_a) & _suites(fields_b)
    fields_a, fields_b = (_of_suites(fields, shared) for fields in (fields_a, fields_b))
    same = [name for name in _SAME_FIELDS if name not in ignored]
    found += [_differ(name, fields_a.get(name), fields_b.get(name)) for name in same]
    found += [_differ(name, versions_of(a, name), versions_of(b, name)) for name in SIMULATOR]
    ours, theirs = _newest(a), _newest(b)
    found += [_differ(name, ours[name], theirs[name]) for name in differing(ours, theirs, _recorded(ours, theirs))]
    found.append(_differ("init_states_file's content", *(_states_digest(run) for run in (a, b))))
    return [text for text in found if text]


def _suites(fields: Mapping[str, Any]) -> set[str]:
    named = fields.get("task_suite")
    return set(named) if isinstance(named, list) else {str(named)}


def _of_suites(fields: Mapping[str, Any], shared: Collection[str]) -> dict[str, Any]:
    """Return the settings as they apply to the `shared` suites, because the others do not matter to a pair."""
    if not shared:
        return dict(fields)
    names = sorted(shared)
    by_suite = {setting: _of(fields.get(setting), names) for setting in ("env.instruction", "env.max_steps")}
    return {**fields, "task_suite": names, **by_suite}


def _of(value: Any, suites: Sequence[str]) -> Any:
    """Return a setting's value for the suites: by suite only if they differ."""
    values = [value.get(name) if isinstance(value, dict) else value for name in suites]
    return values[0] if len(set(values)) == 1 else dict(zip(suites, values, strict=True))


def _states_digest(run: Run) -> str | None:
    states = run.info.get("init_states")
    return str(states.get("sha256"))[:12] if isinstance(states, dict) else None


def remarks(a: Run, b: Run) -> list[str]:
    """Return differences that do not prevent pairing, but matter to a reader."""
    found = [_differ("renderer", renderers(a), renderers(b))]
    ours, theirs = _newest(a), _newest(b)
    for name in _recorded(ours, theirs):
        if (name in ours) != (name in theirs):  # one run is older than digests
            found.append(_differ(name, *(one.get(name, "not recorded") for one in (ours, theirs))))
    return [text for text in found if text]


def _differ(name: str, a: Any, b: Any) -> str:
    return "" if a == b else f"{name} ({_said(a)} in A, {_said(b)} in B)"


def _said(value: Any) -> str:
    return "default" if value is None else str(value)


def _recorded(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the decisive names that a run.json of before 0.2 lacks."""
    return [name for name in decisive_names(ours, theirs) if name not in DECISIVE_PACKAGES]


def versions_of(run: Run, package: str) -> str:
    """Return the package's version on the machines that ran episodes; several if they disagreed."""
    hosts = run.info.get("hosts") or {"": run.info}
    found = {str((host.get("versions") or {}).get(package, "not installed")) for host in hosts.values()}
    return ", ".join(sorted(found))


def _newest(run: Run) -> dict[str, str]:
    """Return the software of the newest session; others had the same decisive packages, or it would be refused."""
    return software(sessions(run.info)[-1])


def renderers(run: Run) -> str:
    """Return the renderers of the machines that ran episodes."""
    hosts = run.info.get("hosts") or {"": run.info}
    return ", ".join(sorted({str(host["renderer"]) for host in hosts.values() if host.get("renderer")}))


def _rows(run: Run) -> dict[TrialKey, Mapping[str, Any]]:
    columns = ["suite", "task_id", "trial", "task_name", "instruction", "success", "num_steps", "video_path"]
    rows = run.episodes.select(columns).to_pylist()
    return {TrialKey.from_row(row): row for row in rows}


def rate(pairs: Iterable[Pair], side: str) -> float:
    """Return the success rate of side 'a' or 'b' over the pairs; NaN without pairs."""
    outcomes = [getattr(pair, side)["success"] for pair in pairs]
    return sum(outcomes) / len(outcomes) if outcomes else math.nan
