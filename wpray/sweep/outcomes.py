"""Outcomes of a sweep's checkpoints, read from the folders of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from wpray.results import Run, load
from wpray.results.paired import PairCounts, difference_interval, holm, mcnemar_p, pairs_of
from wpray.results.pairing import obstacles
from wpray.results.statistics import Rate, average_of_tried, stratified, wilson
from wpray.sweep.grid import SweepCheckpoint, labels, steps
from wpray.types import TrialKey

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """Episodes of one task."""

    suite: str
    task_id: int
    instruction: str
    successes: int
    trials: int  # with an outcome
    errors: int

    @property
    def rate(self) -> Rate:
        """Success rate with its interval."""
        return wilson(self.successes, self.trials)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A checkpoint that has episodes."""

    name: str
    label: str
    step: int | None
    paths: Mapping[str, str]
    run: Run
    tasks: Sequence[TaskCounts]
    outcomes: Mapping[TrialKey, bool | None]  # None: an error
    held_out: bool = False  # trials of a race's winner that have not chosen it

    @property
    def state(self) -> str:
        """State of its run: running, finished or stopped."""
        return str(self.run.info.get("state"))

    @property
    def suites(self) -> dict[str, list[TaskCounts]]:
        """Tasks by suite."""
        groups: dict[str, list[TaskCounts]] = {}
        for task in self.tasks:
            groups.setdefault(task.suite, []).append(task)
        return groups

    @property
    def rate(self) -> Rate:
        """Overall rate, the average over suites if there are several, with its interval."""
        return average_of_tried([_counts(tasks) for tasks in self.suites.values()])

    def suite_rate(self, suite: str) -> Rate:
        """Return the rate of one suite, its interval stratified by task."""
        return stratified(_counts(self.suites[suite]))

    @property
    def errors(self) -> int:
        """Number of episodes without an outcome."""
        return sum(task.errors for task in self.tasks)


@dataclass(frozen=True, slots=True)
class SweepComparison:
    """Paired test of two checkpoints on the trials that have an outcome in both."""

    a: Evaluated
    b: Evaluated
    pairs: PairCounts
    interval: tuple[float, float]  # of B's rate minus A's
    p: float
    adjusted: float  # for the number of comparisons

    @property
    def shown(self) -> bool:
        """True if the difference holds beside all the others at the level of 5%."""
        return self.adjusted < LEVEL


def evaluated(checkpoints: Sequence[SweepCheckpoint], places: Sequence[Path]) -> list[Evaluated]:
    """Return the checkpoints whose runs have episodes, in the given order."""
    named = _steps_and_labels(checkpoints)
    return [
        _evaluated(checkpoint, step, label, load(place))
        for checkpoint, (step, label), place in zip(checkpoints, named, places, strict=True)
        if _has_episodes(place)
    ]


def compared(found: Sequence[Evaluated]) -> list[SweepComparison]:
    """Return the comparisons of all pairs whose trials are the same, the p-values adjusted by Holm's method."""
    same = [(a, b) for a, b in combinations(found, 2) if not obstacles(a.run, b.run)]
    pairs = [(a, b, pairs_of(a.outcomes, b.outcomes)) for a, b in same]
    pairs = [(a, b, counts) for a, b, counts in pairs if counts.total]
    p_values = [mcnemar_p(counts) for _, _, counts in pairs]
    return [
        SweepComparison(a, b, counts, difference_interval(counts), p, adjusted)
        for (a, b, counts), p, adjusted in zip(pairs, p_values, holm(p_values), strict=True)
    ]


def mixed(found: Sequence[Evaluated]) -> list[str]:
    """Return a line for each checkpoint whose trials are not those of the first, as after a change of the simulator."""
    differences = [(one, obstacles(found[0].run, one.run)) for one in found[1:]]
    return [
        f"{found[0].label} (A) and {one.label} (B) are not compared: they differ in {'; '.join(what)}"
        for one, what in differences
        if what
    ]


def held_out(checkpoint: SweepCheckpoint, place: Path, found: Sequence[Evaluated]) -> list[Evaluated]:
    """Return a winner's run on its held-out trials, named as in `found`; empty before its first episode."""
    if not _has_episodes(place):
        return []
    like = next(one for one in found if one.name == checkpoint.name)
    return [replace(_evaluated(checkpoint, like.step, like.label, load(place)), held_out=True)]


def solved(run: Run) -> dict[TrialKey, bool | None]:
    """Return the outcomes of a run by trial; None is an error."""
    columns = [run.episodes[name].to_pylist() for name in ("suite", "task_id", "trial", "success")]
    return {TrialKey(*key): success for *key, success in zip(*columns, strict=True)}


def rate_of(outcomes: Mapping[TrialKey, bool]) -> float:
    """Return the success rate of trials, the average over suites if there are several."""
    suites: dict[str, dict[int, list[bool]]] = {}
    for key, success in outcomes.items():
        suites.setdefault(key.suite, {}).setdefault(key.task_id, []).append(success)
    counts = [[(sum(its), len(its)) for its in tasks.values()] for tasks in suites.values()]
    return average_of_tried(counts).rate


def _has_episodes(place: Path) -> bool:
    return (place / "episodes.parquet").exists() or any((place / "parts").glob("*/*.parquet"))


def _steps_and_labels(checkpoints: Sequence[SweepCheckpoint]) -> list[tuple[int | None, str]]:
    """Return step and short name of each: the step is of the first setting whose paths have different ones."""
    if not checkpoints:
        return []
    names = list(checkpoints[0].paths)
    columns = {name: [checkpoint.paths[name] for checkpoint in checkpoints] for name in names}
    varied = [name for name in names if len(set(columns[name])) > 1] or names
    by_setting = {name: steps(columns[name]) for name in varied}
    leading = max(varied, key=lambda name: len(set(by_setting[name]) - {None}))
    said = zip(*(labels(columns[name]) for name in varied), strict=True)
    return list(zip(by_setting[leading], (" + ".join(parts) for parts in said), strict=True))


def _evaluated(checkpoint: SweepCheckpoint, step: int | None, label: str, run: Run) -> Evaluated:
    outcomes = solved(run)
    names = (run.episodes[name].to_pylist() for name in ("suite", "task_id", "instruction"))
    instructions = {(suite, task_id): text for suite, task_id, text in zip(*names, strict=True)}
    groups: dict[tuple[str, int], list[bool | None]] = {}
    for key, success in outcomes.items():
        groups.setdefault((key.suite, key.task_id), []).append(success)
    tasks = [
        TaskCounts(*key, instructions[key], its.count(True), len(its) - its.count(None), its.count(None))
        for key, its in sorted(groups.items())
    ]
    return Evaluated(checkpoint.name, label, step, checkpoint.paths, run, tasks, outcomes)


def _counts(tasks: Sequence[TaskCounts]) -> list[tuple[int, int]]:
    return [(task.successes, task.trials) for task in tasks]
