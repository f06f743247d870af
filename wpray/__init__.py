"""wpray: evaluate robot policies on benchmarks in simulation, in parallel on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from wpray.config import Config
    from wpray.policies.base import AnyPolicy
    from wpray.results import Run
    from wpray.run.callbacks import EpisodeDone

__version__ = "0.1.0"


def evaluate(
    config: Config | Mapping[str, Any] | str | Path,
    policy: AnyPolicy | None = None,
    *,
    on_episode: Callable[[EpisodeDone], None] | None = None,
) -> Run:
    """Evaluate as `python -m wpray.launch` does, and return the run.

    `config`: settings by name, a YAML file, or a Config. `policy`: an object to be evaluated as it is now, without
    files, on whatever device it lies; default: the configured one. `on_episode` is called after each episode; what it
    raises is logged and costs no episode. Raises what the command reports: BadInputError, RunStoppedError.
    """
    from wpray.run.from_python import evaluate

    return evaluate(config, policy, on_episode)
