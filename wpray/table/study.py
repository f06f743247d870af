"""Runs of several policies on several suites, joined into one table of success rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath
from typing import Any

from wpray.config import path_fields
from wpray.errors import BadInputError
from wpray.provenance.settings import DONE_WITHOUT
from wpray.results import Run
from wpray.results.difficulty import Difficulty, by_difficulty
from wpray.results.paired import PairCounts, mcnemar_p, pairs_of
from wpray.results.pairing import CONDITIONS, OF_A_SUITE, obstacles
from wpray.results.statistics import Rate, average, stratified
from wpray.results.variations import Robustness, robustness, variations_of
from wpray.types import TaskKey, TrialKey

AVERAGE = "average"
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class StudyEntry:
    """One policy: a row of the table."""

    name: str
    runs: list[Run]
    outcomes: Mapping[TrialKey, bool | None]  # None: the trial ended in an error

    @property
    def by_task(self) -> dict[TaskKey, tuple[int, int]]:
        """(successes, episodes with an outcome) of each task that has one."""
        counts: dict[TaskKey, tuple[int, int]] = {}
        for key, success in sorted(self.outcomes.items()):
            if success is not None:
                solved, trials = counts.get(key.task, (0, 0))
                counts[key.task] = (solved + success, trials + 1)
        return counts

    def tasks(self, suite: str) -> list[tuple[int, int]]:
        """Return (successes, episodes with an outcome) of each task of a suite."""
        return [counts for key, counts in self.by_task.items() if key.suite == suite]

    def errors(self, suites: Iterable[str]) -> int:
        """Return the number of trials of the suites that ended in an error."""
        among = set(suites)
        return sum(success is None and key[0] in among for key, success in self.outcomes.items())


@dataclass(frozen=True, slots=True)
class StudyCell:
    """A policy's success rate in one column."""

    rate: Rate
    errors: int
    best: bool = False  # the paired test shows it better than every other policy of the column


@dataclass(frozen=True, slots=True)
class Study:
    """The table: `cells[entry][column]`; the last of several columns is the average over suites."""

    entries: list[StudyEntry]
    suites: list[str]
    columns: list[str]
    cells: list[list[StudyCell]]


def tabulate(runs: Sequence[Run], names: Sequence[str] | None = None) -> Study:
    """Join runs into one table; runs of the same name, or without names of the same policy, share a row.

    Raises BadInputError if two runs of a row hold the same trial.
    """
    entries = _entries(runs, names)
    suites = list(dict.fromkeys(key[0] for entry in entries for key in sorted(entry.outcomes)))
    groups = [[suite] for suite in suites] + ([suites] if len(suites) > 1 else [])
    best = [_best(entries, group) for group in groups]
    cells = [
        [
            StudyCell(_rate(entry, group), entry.errors(group), best[column] is entry)
            for column, group in enumerate(groups)
        ]
        for entry in entries
    ]
    return Study(entries, suites, suites + [AVERAGE] * (len(groups) > len(suites)), cells)


def perturbations(entry: StudyEntry) -> Robustness | None:
    """Return the entry's rates by base suite and axis; None if none of its suites perturbs another."""
    variations = {suite: place for run in entry.runs for suite, place in variations_of(run.info).items()}
    suites = dict.fromkeys(key[0] for key in sorted(entry.outcomes))
    return robustness({suite: entry.tasks(suite) for suite in suites}, variations)


def graded(entry: StudyEntry) -> Difficulty | None:
    """Return the entry's rates by axis and difficulty; None if its tasks are not graded."""
    return by_difficulty(entry.by_task, [run.info for run in entry.runs])


def mixed(runs: Sequence[Run]) -> list[str]:
    """Return why the runs do not belong into one table, a line for each pair that disagrees; empty if they do."""
    found = []
    for a, b in _pairs_to_check(runs):
        differences = obstacles(a, b, ("task_suite",) if _suites(a) & _suites(b) else OF_A_SUITE)
        if differences:
            found.append(f"{a.location} (A) and {b.location} (B) differ in {'; '.join(differences)}")
    return found


def _pairs_to_check(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return every run with the first, and with the first that shares a suite; more would repeat differences."""
    pairs = []
    for index, run in enumerate(runs[1:], 1):
        sharing = next((other for other in runs[:index] if _suites(other) & _suites(run)), runs[0])
        pairs += [(runs[0], run)] + ([(sharing, run)] if sharing is not runs[0] else [])
    return pairs


def _suites(run: Run) -> set[str]:
    return set(run.episodes["suite"].unique().to_pylist())


def _entries(runs: Sequence[Run], names: Sequence[str] | None) -> list[StudyEntry]:
    groups: dict[Any, list[Run]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(_policy_of(run) if names is None else names[index], []).append(run)
    given = list(groups) if names is not None else _distinct([_name(members) for members in groups.values()])
    return [
        StudyEntry(name, members, _joined(name, members)) for name, members in zip(given, groups.values(), strict=True)
    ]


def _joined(name: str, runs: Sequence[Run]) -> dict[TrialKey, bool | None]:
    outcomes: dict[TrialKey, bool | None] = {}
    for run in runs:
        columns = [run.episodes[column].to_pylist() for column in ("suite", "task_id", "trial", "success")]
        mine = {TrialKey(*key): success for *key, success in zip(*columns, strict=True)}
        if twice := outcomes.keys() & mine.keys():
            raise BadInputError(
                f"{run.location}: {len(twice)} trials of {min(twice).suite} are in another run of {name}, too; "
                "leave one of them out, or name the rows with --names"
            )
        outcomes |= mine
    return outcomes


def _policy_of(run: Run) -> tuple[Any, ...]:
    """Return what identifies a policy: its settings and the content of its files, not their place."""
    given = run.info["config"].get("policy_args") or {}  # all of them: another server may have another model
    named = {f"policy_args.{name}": value for name, value in given.items()}
    fields = DONE_WITHOUT | (run.info.get("outcome_fields") or {}) | named
    files = sorted((run.info.get("policy_files") or {}).values())
    left_out = CONDITIONS | (set(path_fields()) if files else set())
    return (*sorted((name, repr(value)) for name, value in fields.items() if name not in left_out), *files)


def _name(runs: Sequence[Run]) -> str:
    checkpoint, policy = runs[0].checkpoint, str(runs[0].info["config"].get("policy"))
    return policy if checkpoint is None else f"{policy} {'/'.join(PurePath(checkpoint).parts[-2:])}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that occur several times: 'noop', 'noop (2)'."""
    seen: dict[str, int] = {}
    numbered = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def _rate(entry: StudyEntry, suites: Sequence[str]) -> Rate:
    tasks = [entry.tasks(suite) for suite in suites]
    return stratified(tasks[0]) if len(tasks) == 1 else average(tasks)


def _best(entries: Sequence[StudyEntry], suites: Sequence[str]) -> StudyEntry | None:
    """Return the entry that the exact paired test shows better than each of the others; None if there is none.

    All of the tests must agree, so that no correction for their number is needed.
    """
    tried = [entry for entry in entries if _rate(entry, suites).trials]
    beaten = {id(entry): 0 for entry in tried}
    for a, b in combinations(tried, 2):
        pairs = paired(a, b, suites)
        if mcnemar_p(pairs) < LEVEL:
            beaten[id(a if pairs.only_a > pairs.only_b else b)] += 1
    winners = [entry for entry in tried if len(tried) > 1 and beaten[id(entry)] == len(tried) - 1]
    return winners[0] if winners else None


def paired(a: StudyEntry, b: StudyEntry, suites: Sequence[str]) -> PairCounts:
    """Count the trials of the suites that have an outcome in both, by the two outcomes."""
    among = set(suites)
    ours, theirs = ({key: won for key, won in entry.outcomes.items() if key[0] in among} for entry in (a, b))
    return pairs_of(ours, theirs)
