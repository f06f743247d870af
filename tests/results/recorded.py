"""Makes result folders of any outcome, quickly, with the writer that real runs use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.config import Config
from wpray.provenance import record
from wpray.provenance.settings import fingerprint, outcome_fields
from wpray.results.encode import EncodedEpisode, EpisodeContext, encode_episode, encode_error
from wpray.results.merge import merge
from wpray.results.writer import RunFolder
from wpray.types import Decision, EpisodeResult, EpisodeTimes, Failure, Timing, Trajectory, Trial

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_SEGMENT = 20


def write_run(
    path: Path,
    outcomes: Sequence[Sequence[bool | None]],
    steps: int = 40,
    workers: int = 2,
    merged: bool = True,
    bonus: float = 0.0,
    **changes: Any,
) -> None:
    """A finished run of the fake suite: `outcomes[task][trial]` is its success, None an error.

    `bonus` is the reward beyond success.

    `changes` replace what run.json says (`seed` and `policy` in the config, too).
    """
    folder = RunFolder(path)
    folder.open()
    number = 0
    for task, trials in enumerate(outcomes):
        for trial, success in enumerate(trials):
            folder.write_episodes(
                _episode(
                    Trial(fake_tasks()[task], trial, changes.get("seed", 0)), success, number, steps, workers, bonus
                )
            )
            number += 1
    config = Config(task_suite="fake", policy=changes.pop("policy", "scripted"), seed=changes.pop("seed", 0))
    info = {
        "run_id": "run",
        "started_at": START.isoformat(),
        "config": config.model_dump(mode="json"),
        "outcome_fields": outcome_fields(config),
        "fingerprint": fingerprint(config),
        **record.collect().as_dict(),
        "privileged": True,
        "renderer": "osmesa",
        "state": "finished",
        "stop_reason": None,
        "written_at": (START + timedelta(hours=1)).isoformat(),
        "waypoint_space": {"scale": [1.0] * 8, "offset": [0.0] * 8},
    }
    folder.write_info(info | changes)
    if merged:
        merge(folder)
    folder.close()


def _episode(
    trial: Trial, success: bool | None, number: int, steps: int, workers: int, bonus: float = 0.0
) -> EncodedEpisode:
    worker = f"env-{number % workers}"
    started = START + timedelta(seconds=3 * (number // workers))
    context = EpisodeContext(
        "run", "scripted", None, "wpray", "host", worker, 1, started, started + timedelta(seconds=3)
    )
    if success is None:
        trace = "Traceback (most recent call last):\n  boom"
        return encode_error(trial, context, Failure("environment", "ValueError", "no <solution>", trace))
    return encode_episode(_result(trial, success, steps, bonus), context, "full")


def _result(trial: Trial, success: bool, steps: int, bonus: float = 0.0) -> EpisodeResult:
    """A hand on a straight way, with a plan of two waypoints on it."""
    env = FakeEnvironment()
    env.load(trial.task)
    env.reset(trial)
    actions = np.zeros((steps, 7))
    actions[:, 0] = 0.5
    states = []
    for action in actions:
        env.step(action)
        states.append(env.state())
    times = EpisodeTimes(reset_s=0.5, env_s=1.0, render_s=0.4, policy_wait_s=0.8, wall_s=2.8)
    decisions = tuple(_decisions(np.stack([state["eef_pos"] for state in states])))
    trajectory = Trajectory(actions, tuple(states), env.scene())
    return EpisodeResult(trial, success, steps, 1, 2, decisions, trajectory, times, reward=float(success) + bonus)


def _decisions(path: np.ndarray) -> list[Decision]:
    waypoints = np.zeros((3, 8), np.float32)
    waypoints[0, :3] = path[_SEGMENT - 1] + [0.01, 0, 0]  # missed by 1 cm
    waypoints[1, :3] = path[-1]
    plan = Decision(
        "plan", 0, 0, 0, waypoints, np.array([_SEGMENT, _SEGMENT, 0]), None, None, 0.4, Timing(0.1, 0.2, 4), 0.75
    )
    first = Decision("segment", 0, 0, 0, None, None, 0, _SEGMENT, 0.0, Timing(0.1, 0.2, 4), 1.15)
    second = Decision("segment", _SEGMENT, 0, 1, None, None, 1, _SEGMENT, 0.4, Timing(0.1, 0.1, 2), 1.8)
    return [plan, first, second]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
