"""Course of a sweep: which runs are left, in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wpray.config import Config
from wpray.policies.factory import with_policy_args
from wpray.run.output import is_finished
from wpray.sweep.folder import SweepFolder
from wpray.sweep.grid import Grid, SweepCheckpoint, natural


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    checkpoint: SweepCheckpoint
    place: Path
    config: Config

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.place.name

    @property
    def is_finished(self) -> bool:
        """True if its run has all that is asked of it."""
        return is_finished(self.place, self.config)

    @property
    def said(self) -> str:
        """Its paths, for messages."""
        return " + ".join(self.checkpoint.paths.values())

    def with_trials(self, end: int) -> Job:
        """Return the run with trials up to `end` of each task."""
        return replace(self, config=self.config.model_copy(update={"num_trials_per_task": end}))


def job_of(checkpoint: SweepCheckpoint, folder: SweepFolder) -> Job:
    """Return the run of a checkpoint: in the sweep's folder, and without videos before the sweep's end."""
    config = with_policy_args(checkpoint.config)
    place = folder.run_path(checkpoint.name)
    video = config.video.model_copy(update={"mode": "none"})
    changed = {"output_dir": str(place), "resume": "auto", "video": video}
    return Job(checkpoint, place, config.model_copy(update=changed))


class Course:
    """Every checkpoint once, in order."""

    def __init__(self, grid: Grid, folder: SweepFolder, checkpoints: Sequence[SweepCheckpoint]) -> None:
        """Begin with `checkpoints`, and with those that were evaluated earlier and have been removed since."""
        self.grid, self._folder = grid, folder
        self.jobs: list[Job] = []  # all runs that are known, finished or not
        known = [grid.checkpoint(paths) for paths in folder.known_paths(list(grid.patterns))]
        names = {checkpoint.name for checkpoint in checkpoints}
        removed = [one for one in known if one.name not in names and self._was_evaluated(job_of(one, folder))]
        self.add([*checkpoints, *removed])

    def add(self, checkpoints: Sequence[SweepCheckpoint]) -> None:
        """Add checkpoints in their places."""
        jobs = [*self.jobs, *(job_of(checkpoint, self._folder) for checkpoint in checkpoints)]
        self.jobs = sorted(jobs, key=lambda job: [natural(path) for path in job.checkpoint.paths.values()])

    @property
    def incomplete(self) -> Mapping[str, str]:
        """Reasons by path why checkpoints that are there do not count."""
        return {}

    @property
    def held_out(self) -> Job | None:
        """Run of a race's winner on trials that have not chosen it."""
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the course for sweep.json and the report."""
        return {}

    def left(self, failed: Collection[str]) -> list[Job]:
        """Return the runs that are to be done now, in order, without those that have `failed`, by name."""
        return [job for job in self.jobs if job.name not in failed and not job.is_finished]

    def _was_evaluated(self, job: Job) -> bool:
        """Return True if the run of a checkpoint that has been removed still counts."""
        return job.is_finished

    def wait(self, failed: Collection[str]) -> bool:
        """Return True once there are more runs to do; False if none will come."""
        return False
