"""Trackers by name: built in, installed with an entry point, or given by their import path."""

from __future__ import annotations

from importlib.util import find_spec
from typing import cast

from wpray.errors import BadInputError
from wpray.registry import Registry
from wpray.trackers.base import TrackedRun, Tracker

TRACKERS = Registry(
    "track",
    "wpray.trackers",
    {
        "wandb": "wpray.trackers.to_wandb:WandbTracker",
        "trackio": "wpray.trackers.to_trackio:TrackioTracker",
        "mlflow": "wpray.trackers.to_mlflow:MlflowTracker",
        "tensorboard": "wpray.trackers.to_tensorboard:TensorboardTracker",
    },
    extras={name: name for name in ("wandb", "trackio", "mlflow", "tensorboard")},
)
_PACKAGES = {name: name for name in TRACKERS.built_in} | {"tensorboard": "tensorboardX"}


def check_tracker(name: str) -> None:
    """Raise BadInputError for a tracker that is unknown or not installed. Built-in ones are not imported for that."""
    package = _PACKAGES.get(name)
    if package is None:
        TRACKERS.load(name)
    elif find_spec(package) is None:
        raise BadInputError(
            f"track: {name} needs the package {package}, which is not installed; "
            f"run: pip install 'wpray[{TRACKERS.extras[name]}]'"
        )


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Return the tracker, with `run` begun. Raises BadInputError as `check_tracker`, and what the tracker raises."""
    return cast(Tracker, TRACKERS.load(name)(run))
