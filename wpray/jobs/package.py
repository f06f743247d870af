"""Content of a submission: this package as it is in the working tree, and the run to perform. Nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wpray.config import Config
from wpray.provenance import record

_PACKAGE = Path(record.__file__).parents[1]
_SUBMISSION = "submission.json"


@dataclass(frozen=True, slots=True)
class Submission:
    """Run that a job performs."""

    job_id: str
    config: dict[str, Any]  # resolved from YAML and command line
    plan: bool  # only forecast the run


def submission(config: Config, job_id: str, plan: bool) -> Submission:
    """Return the run that `config` describes, as the driver on the cluster must see it."""
    there = config.ray.model_copy(update={"submit": None, "job": None, "address": "auto"})
    return Submission(job_id, config.model_copy(update={"ray": there}).model_dump(mode="json"), plan)


def pack(what: Submission, folder: Path) -> None:
    """Fill an empty `folder`, the job's working directory, with this package, its commit and `what`."""
    target = folder / _PACKAGE.name
    shutil.copytree(_PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]", ".*"))
    commit = record.git_commit()
    if commit is not None:
        (target / record.COMMIT_FILE).write_text(commit)
    (folder / _SUBMISSION).write_text(json.dumps(asdict(what)))


def unpack(folder: Path) -> Submission:
    """Read what `pack` has put into the job's working directory."""
    return Submission(**json.loads((folder / _SUBMISSION).read_text()))
