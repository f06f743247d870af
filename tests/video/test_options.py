"""What the video and export commands take from a run's own configuration."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest

from wpray.errors import BadInputError
from wpray.video.options import rendering_config

WHERE = Namespace(num_actors=3, address=None)


def _run(**config: Any) -> Any:
    return SimpleNamespace(location="RUN", info={"config": {"task_suite": "fake", "policy": "noop", **config}})


def test_a_run_with_settings_that_are_refused_today_still_has_videos() -> None:
    older = _run(output_dir="", retry={"stall_s": 0.3}, stop_when={"reference_rate": 0.5, "difference": 0.7})
    config = rendering_config(older, WHERE)
    assert (config.task_suite, config.num_env_actors) == ("fake", 3)


def test_what_rendering_needs_is_checked() -> None:
    with pytest.raises(BadInputError, match="task_suite"):
        rendering_config(_run(task_suite="../x"), WHERE)
