"""Programs that LIBERO's checks run in processes of their own, because what crashes or hangs in them is a finding.

`python -m wpray.benchmarks.libero.probe NAME` prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

_SETTLING = 250  # physics steps: the ten wait steps of an episode


def libero() -> dict[str, Any]:
    """Import LIBERO as an env actor does."""
    from wpray.benchmarks.libero.imports import load

    load("libero.libero.envs")
    return {}


def simulator() -> dict[str, Any]:
    """Return how far the bowl of libero_spatial task 5 slides while it settles, cm, and how bright libero_object is.

    Plain physics without the robot's controller, so that it runs on any MuJoCo that can compile the scenes.
    """
    import mujoco
    import numpy as np

    from wpray.benchmarks.libero import tasks
    from wpray.benchmarks.libero.observed import CAMERA_SIZE, CAMERAS
    from wpray.benchmarks.libero.rendering import SceneRenderer, upright
    from wpray.benchmarks.libero.scene import Scene

    def scene_at_start(suite: str, task_id: int) -> Scene:
        scene = Scene(tasks.bddl_file(suite, task_id))
        scene.reset()
        scene.env.sim.set_state_from_flattened(tasks.initial_states(suite, task_id)[0])
        mujoco.mj_forward(scene.model, scene.data)
        return scene

    np.random.seed(0)
    spatial = scene_at_start("libero_spatial", 5)
    first = spatial.env.sim.model.get_joint_qpos_addr("akita_black_bowl_1_joint0")[0]
    before = spatial.data.qpos[first : first + 2].copy()
    spatial.data.ctrl[:] = 0
    mujoco.mj_step(spatial.model, spatial.data, nstep=_SETTLING)
    slide = float(np.linalg.norm(spatial.data.qpos[first : first + 2] - before))
    spatial.close()
    table = scene_at_start("libero_object", 0)
    size, alpha = CAMERA_SIZE, table.model.site_rgba[:, 3]
    image = SceneRenderer(table.model).render(CAMERAS["base"], size, size, table.data.qpos, alpha)
    return {"mujoco": mujoco.__version__, "slide_cm": 100 * slide, "brightness": float(upright(image).mean())}


_PROBES: dict[str, Callable[[], dict[str, Any]]] = {probe.__name__: probe for probe in (libero, simulator)}


def main(argv: Sequence[str]) -> int:
    """Run the probe that `argv` names."""
    print(json.dumps(_PROBES[argv[0]]()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
