"""Provenance of a table: what every run of it shares, and where each row comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wpray.provenance.settings import DONE_WITHOUT
from wpray.results import Run
from wpray.results.difficulty import source_of_levels
from wpray.results.pairing import SIMULATOR, renderers, versions_of
from wpray.results.sessions import PROTOCOL, sessions, software
from wpray.results.variations import variations_of
from wpray.table.study import AVERAGE, LEVEL, Study

_SHOWN_DIGITS = 12


def legend(study: Study) -> list[str]:
    """Return lines about the meaning of the numbers and the conditions that all runs share."""
    runs = [run for entry in study.entries for run in entry.runs]
    lines = ["Success rates in percent with their 95% intervals, stratified by task; errors are left out."]
    if AVERAGE in study.columns:
        lines.append("The average weighs every suite alike; it is left out where a suite was not run.")
    if len(study.entries) > 1:
        lines.append(
            f"Bold: better than every other policy of the column on the same trials (exact McNemar, p < {LEVEL:g})."
        )
    if any(variations_of(run.info) for run in runs):
        lines.append(
            "Under perturbations: the rate, then its difference from the unperturbed suite in points with its interval."
        )
    if levels := list(dict.fromkeys(source for run in runs if (source := source_of_levels(run.info)))):
        lines.append(f"By difficulty: levels are {' / '.join(levels)}; all tasks of a level weigh alike.")
    lines.append(f"Conditions: {', '.join(_conditions(runs))}.")
    return lines


def sources(study: Study) -> list[list[str]]:
    """Return a line for each run: the entry that its numbers belong to, and its provenance."""
    return [[_source(run) for run in entry.runs] for entry in study.entries]


def _conditions(runs: Iterable[Run]) -> list[str]:
    listed = list(runs)
    fields = [DONE_WITHOUT | (run.info.get("outcome_fields") or {}) for run in listed]
    newest = [software(sessions(run.info)[-1]) for run in listed]
    shared: list[tuple[str, Sequence[object]]] = [
        ("protocol", [_protocol(one, ours) for one, ours in zip(fields, newest, strict=True)]),
        ("seed", [one.get("seed") for one in fields]),
        ("wait steps", [one.get("num_steps_wait") for one in fields]),
        ("instructions", [source for one in fields for source in _of_all_suites(one.get("env.instruction"))]),
        *[(package, [versions_of(run, package) for run in listed]) for package in SIMULATOR],
        ("renderer", [renderers(run) for run in listed]),
    ]
    if any(one["latency.extra_ms"] for one in fields):
        shared.append(("latency", [f"{one['latency.extra_ms']:g} ms {one['latency.mode']}" for one in fields]))
    return [f"{name} {_distinct(values)}" for name, values in shared]


def _of_all_suites(value: object) -> Iterable[object]:
    """Return the values of a setting that a run may have by suite."""
    return value.values() if isinstance(value, dict) else [value]


def _protocol(fields: dict[str, object], ours: dict[str, str]) -> str:
    return f"{fields.get('env.protocol')} {ours[PROTOCOL]}"


def _distinct(values: Iterable[object]) -> str:
    return " / ".join(dict.fromkeys(str(value) if value not in (None, "") else "not recorded" for value in values))


def _source(run: Run) -> str:
    info = run.info
    parts = [f"run {info.get('run_id')} ({run.location})", f"{len(run.episodes)} episodes"]
    errors = run.episodes["success"].null_count
    parts += [f"{errors} with an error"] if errors else []
    parts += [] if info.get("state") == "finished" else [f"not finished ({info.get('state')})"]
    parts.append(
        f"wpray {(info.get('versions') or {}).get('wpray', 'not recorded')} at {_commit(info.get('git_commit'))}"
    )
    files = sorted(set((info.get("policy_files") or {}).values()))
    parts += [f"files {', '.join(digest[:_SHOWN_DIGITS] for digest in files)}"] if files else []
    return ", ".join(parts)


def _commit(commit: object) -> str:
    if not commit:
        return "no commit"
    name, plus, state = str(commit).partition("+")
    return f"commit {name[:_SHOWN_DIGITS]}{plus}{state}"
