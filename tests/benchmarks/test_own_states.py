"""Initial states of a user's own in real LIBERO, and looking at the robot's state, which changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wpray.errors import BadInputError
from wpray.types import ObservationSpec, Trial

pytestmark = pytest.mark.libero
BLIND = ObservationSpec(cameras={})


def test_a_trial_starts_in_its_own_state_and_a_look_changes_no_bit() -> None:
    from wpray.benchmarks.libero import tasks
    from wpray.benchmarks.libero.environment import LiberoEnvironment

    task = tasks.list_tasks("libero_object")[0]
    states = tasks.initial_states("libero_object", 0)
    env = LiberoEnvironment()
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7))

    def positions(trial: Trial, look: bool) -> bytes:
        env.reset(trial)
        if look:
            env.observe(BLIND)
        found = []
        for action in actions:
            env.step(action)
            found.append(env.state()["qpos"])
            if look:
                env.observe(BLIND)
        return np.array(found).tobytes()

    env.load(task)
    third = Trial(task, 3, 0)
    plain = positions(third, look=False)
    assert positions(third, look=True) == plain
    assert positions(replace(third, own_state=tuple(states[3].tolist())), look=True) == plain
    other = replace(third, own_state=tuple(states[5].tolist()))
    assert positions(other, look=False) != plain
    env.reset(other)
    assert np.array_equal(env.state()["qpos"], states[5][1 : 1 + len(env.state()["qpos"])])
    with pytest.raises(BadInputError, match=rf"a state of {task.name} has 4 numbers, not {states.shape[1]}"):
        env.reset(replace(third, own_state=(0.0, 1.0, 2.0, 3.0)))
    env.close()
