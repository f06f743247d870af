"""Course of a sweep: which runs are left, in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from wpray.config import Config
from wpray.policies.factory import with_policy_args
from wpray.run.output import is_finished
from wpray.sweep.folder import SweepFolder
from wpray.sweep.grid import SweepCheckpoint


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    checkpoint: SweepCheckpoint
    place: Path
    config: Config

    @property
    def is_finished(self) -> bool:
        """True if its run has all that is asked of it."""
        return is_finished(self.place, self.config)

    @property
    def said(self) -> str:
        """Its paths, for messages."""
        return " + ".join(self.checkpoint.paths.values())


def job_of(checkpoint: SweepCheckpoint, folder: SweepFolder) -> Job:
    """Return the run of a checkpoint: in the sweep's folder, and without videos before the sweep's end."""
    config = with_policy_args(checkpoint.config)
    place = folder.run_path(checkpoint.name)
    video = config.video.model_copy(update={"mode": "none"})
    changed = {"output_dir": str(place), "resume": "auto", "video": video}
    return Job(checkpoint, place, config.model_copy(update=changed))


class Course:
    """Every checkpoint once, in order."""

    def __init__(self, checkpoints: Sequence[SweepCheckpoint], folder: SweepFolder) -> None:
        self._jobs = [job_of(checkpoint, folder) for checkpoint in checkpoints]

    @property
    def jobs(self) -> list[Job]:
        """All runs that are known, finished or not."""
        return self._jobs

    def left(self, failed: Collection[str]) -> list[Job]:
        """Return the runs that are to be done now, in order, without checkpoints that have `failed`, by name."""
        return [one for one in self.jobs if one.checkpoint.name not in failed and not one.is_finished]
