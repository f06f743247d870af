"""An evaluation that is called from Python, in a training loop for example."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpray.cli.configuration import expand_paths, read_config, validate
from wpray.cluster import process_env
from wpray.config import Config
from wpray.errors import BadInputError

if TYPE_CHECKING:
    from wpray.policies.base import AnyPolicy
    from wpray.results import Run
    from wpray.run.callbacks import EpisodeDone


def evaluate(
    config: Config | Mapping[str, Any] | str | Path,
    policy: AnyPolicy | None,
    on_episode: Callable[[EpisodeDone], None] | None,
) -> Run:
    """Run the evaluation of `wpray.evaluate`; return its results."""
    asked = _config_of(config, policy)
    if asked.ray.submit is not None:
        raise BadInputError("ray.submit: evaluates on the cluster, which a call from Python does not; use ray.address")
    with _environment(asked):
        from wpray.results import load
        from wpray.run.evaluation import CallerParts, evaluate_with

        ended = evaluate_with(asked, CallerParts(policy, on_episode))
        return load(ended.folder.location)


def _config_of(config: Config | Mapping[str, Any] | str | Path, policy: AnyPolicy | None) -> Config:
    if isinstance(config, str | Path):
        asked = read_config(["--config", str(config)])
    elif isinstance(config, Config):
        asked = expand_paths(config)
    elif isinstance(config, Mapping):
        asked = expand_paths(validate({**({} if policy is None else {"policy": "noop"}), **config}))
    else:
        raise BadInputError(f"config: a mapping, a YAML file or a Config, not {type(config).__name__}")
    if policy is None:
        return asked
    # Nothing shows whether the object has changed, so a run of it never continues another's episodes.
    kind = type(policy)
    return asked.model_copy(update={"policy": f"{kind.__module__}:{kind.__qualname__}", "resume": "never"})


@contextlib.contextmanager
def _environment(config: Config) -> Iterator[None]:
    """Set the variables that the processes of a run inherit; at the end restore all, also those that Ray has set."""
    before = dict(os.environ)
    process_env.prepare(joins_a_cluster=config.ray.address is not None)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
