"""Course of a sweep that looks for the best checkpoint: all run few trials, and the better ones go on.

Choosing the best of many flatters it, because luck chooses, too. So the winner also runs trials that no round has used,
and only they estimate its rate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wpray.config import Config
from wpray.config.groups import StopWhenConfig
from wpray.errors import BadInputError
from wpray.results import load
from wpray.sweep.course import Course, Job
from wpray.sweep.folder import SweepFolder
from wpray.sweep.grid import Grid, SweepCheckpoint
from wpray.sweep.outcomes import rate_of, solved

_HELD_OUT = "-held_out"


@dataclass(frozen=True, slots=True)
class Rules:
    """Trials of each task: those of the first round, those of all rounds, and those that are held out."""

    start: int
    first: int  # end of the first round's trials
    limit: int  # end of the last round's
    end: int  # of the held-out ones, which begin at `limit`

    @property
    def as_text(self) -> str:
        """The rules in words."""
        return (
            f"All checkpoints run trials {self.start} to {self.first - 1} of each task. After each round the better "
            "half (rounded up, with those that tie with its last) goes on with twice as many trials, at most up to "
            f"trial {self.limit - 1}. The best of the last round wins, the later one of two that tie. The winner alone "
            f"runs trials {self.limit} to {self.end - 1}, which have chosen nothing: they estimate its rate. A "
            "checkpoint that fails leaves the race."
        )


def race_rules(config: Config, first: int, held_out: int | None) -> Rules:
    """Return the rules of a race: `first` trials a task at first, and `held_out` for the winner (default: half).

    Raises BadInputError if the configured trials are too few, or are not the same of each task.
    """
    if config.stop_when != StopWhenConfig() or config.stop_after_successes is not None:
        raise BadInputError("--race: needs the same trials of each task; leave stop_when and stop_after_successes out")
    start, end = config.trial_start, config.num_trials_per_task
    reserved = max(1, (end - start) // 2) if held_out is None else held_out
    if first + reserved > end - start:
        given = f"{first} trials at first and {reserved} held out"
        raise BadInputError(
            f"--race: {given} are more than the {end - start} of num_trials_per_task; give more of them"
        )
    return Rules(start, start + first, end - reserved, end)


class Race(Course):
    """Rounds of more and more trials for fewer and fewer checkpoints, then the winner's held-out trials."""

    def __init__(self, grid: Grid, folder: SweepFolder, checkpoints: Sequence[SweepCheckpoint], rules: Rules) -> None:
        super().__init__(grid, folder, checkpoints)
        if len(self.jobs) < 2:
            raise BadInputError("--race: needs two checkpoints or more; leave it out for one")
        self._rules = rules
        self._scores: dict[tuple[str, int], float] = {}  # rates of whole rounds, by checkpoint and end of the trials
        self._rounds: list[dict[str, Any]] = []
        self._winner: Job | None = None

    @property
    def held_out(self) -> Job | None:
        """Run of the winner on trials that have not chosen it, once there is one."""
        if self._winner is None:
            return None
        place = self._winner.place.with_name(self._winner.name + _HELD_OUT)
        changed = {"output_dir": str(place), "trial_start": self._rules.limit, "num_trials_per_task": self._rules.end}
        return replace(self._winner, place=place, config=self._winner.config.model_copy(update=changed))

    @property
    def facts(self) -> dict[str, Any]:
        """Rules, rounds and winner."""
        winner = None if self._winner is None else self._winner.name
        return {"race": {"rules": self._rules.as_text, "rounds": self._rounds, "winner": winner}}

    def left(self, failed: Collection[str]) -> list[Job]:
        """Return the runs of the present round that are left, or that of the winner's held-out trials."""
        entered, end = [job for job in self.jobs if job.name not in failed], self._rules.first
        self._rounds, self._winner = [], None
        while entered:
            todo = [job for job in entered if self._score(job, end) is None]
            if todo:
                return [job.with_trials(end) for job in todo]
            scores = {job.name: self._scores[job.name, end] for job in entered}
            last = end == self._rules.limit or len(entered) == 1
            going_on = _best(scores, 1 if last else -(-len(scores) // 2))
            self._rounds.append({"trials_end": end, "rates": scores, "went_on": going_on[-1:] if last else going_on})
            entered = [job for job in entered if job.name in going_on]
            if last or len(entered) == 1:
                self._winner = entered[-1]
                break
            end = min(self._rules.start + 2 * (end - self._rules.start), self._rules.limit)
        held_out = self.held_out
        return [] if held_out is None or held_out.name in failed or held_out.is_finished else [held_out]

    def _was_evaluated(self, job: Job) -> bool:
        """Return True if the run has begun: a round's runs have fewer trials, and what they decided stays decided."""
        return (job.place / "run.json").exists()

    def _score(self, job: Job, end: int) -> float | None:
        """Return the rate over the trials before `end`; None if one of them has no outcome yet."""
        if (job.name, end) not in self._scores:
            found = _rate_before(job, end)
            if found is None:
                return None
            self._scores[job.name, end] = found
        return self._scores[job.name, end]


def _best(scores: Mapping[str, float], count: int) -> list[str]:
    """Return the names of the `count` highest scores and of all that tie with the last of them, in order."""
    least = sorted(scores.values(), reverse=True)[count - 1]
    return [name for name, score in scores.items() if score >= least]


def _rate_before(job: Job, end: int) -> float | None:
    info = job.place / "run.json"
    if not info.exists():
        return None
    try:
        run = load(job.place)
    except BadInputError:  # no episode has finished yet
        return None
    config = run.info["config"]
    trials = config["num_trials_per_task"] - config.get("trial_start", 0)
    tasks = run.info["planned_episodes"] // trials
    outcomes = {key: won for key, won in solved(run).items() if key.init_state < end and won is not None}
    if len(outcomes) < tasks * (end - config.get("trial_start", 0)):
        return None
    return rate_of(outcomes)
