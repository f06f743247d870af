"""`env.protocol: serial` gives a trial the scene that a stock serial evaluator gives it: one seed, k + 1 resets."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from wpray.types import Task, Trial

pytestmark = pytest.mark.libero
_SEED, _TRIALS = 7, 4
# Fixtures that move with every reset; and a drawer that starts open, whose initialiser stock runs once more each time.
_TASKS = [("libero_goal", 1), ("libero_spatial", 4)]


@dataclass(frozen=True)
class Scene:
    """What a trial starts from."""

    qpos: np.ndarray
    qvel: np.ndarray
    body_pos: np.ndarray
    body_quat: np.ndarray
    site_rgba: np.ndarray
    xpos: np.ndarray

    @classmethod
    def of(cls, model: Any, data: Any) -> Scene:
        arrays = (data.qpos, data.qvel, model.body_pos, model.body_quat, model.site_rgba, data.xpos)
        return cls(*(np.array(array) for array in arrays))

    def differences(self, other: Scene) -> list[str]:
        return [name for name in self.__dict__ if not np.array_equal(getattr(self, name), getattr(other, name))]


def stock_scenes(task: Task) -> list[Scene]:
    """As the usual evaluation script does it; images off, since nothing here looks at them."""
    from wpray.benchmarks.libero import tasks
    from wpray.benchmarks.libero.imports import load

    kind = load("libero.libero.envs.env_wrapper").OffScreenRenderEnv
    states = tasks.initial_states(task.suite, task.task_id)
    path = str(tasks.bddl_file(task.suite, task.task_id))
    with contextlib.redirect_stdout(io.StringIO()):
        env = kind(bddl_file_name=path, camera_heights=256, camera_widths=256, use_camera_obs=False)
        env.seed(_SEED)
        scenes = []
        for trial in range(_TRIALS):
            env.reset()
            env.set_init_state(states[trial])
            scenes.append(Scene.of(env.sim.model._model, env.sim.data._data))
        env.close()
    return scenes


@pytest.mark.parametrize(("suite", "task_id"), _TASKS, ids=lambda value: str(value))
def test_scenes_are_stocks_to_the_bit_in_any_order_and_late_trials_cost_no_more(suite: str, task_id: int) -> None:
    from wpray.benchmarks.libero import tasks
    from wpray.benchmarks.libero.environment import LiberoEnvironment

    task = tasks.list_tasks(suite)[task_id]
    stock = stock_scenes(task)
    ours = LiberoEnvironment("serial")
    ours.load(task)

    def reset(trial: int) -> float:
        began = time.process_time()
        ours.reset(Trial(task, trial, _SEED))
        return time.process_time() - began

    for trial in (0, 3, 1, 2, 3, 0):
        np.random.seed(trial)  # whatever ran before in this process
        reset(trial)
        loaded = ours._loaded()
        assert not Scene.of(loaded.model, loaded.data).differences(stock[trial]), trial
    ours.reset(Trial(task, 0, _SEED + 1))
    assert Scene.of(loaded.model, loaded.data).differences(stock[0])  # another seed is another scene
    assert stock[0].differences(stock[1])  # the scenes do depend on the order: there is something to reproduce
    first_49 = reset(49)
    early, late = (statistics.median(reset(trial) for _ in range(5)) for trial in (0, 49))
    print(f"{suite} {task_id}: trial 0 {early:.3f} s, trial 49 {late:.3f} s, the first time {first_49:.3f} s")
    assert late < 1.5 * early + 0.01
    ours.close()
