"""Programs that the doctor runs in separate processes, so that a crash or a hang is a result of a check.

`python -m wpray.doctor.probe NAME [ARGUMENT ...]` prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

_FRAME = """
<mujoco><worldbody><light pos="0 0 3"/><camera name="c" pos="0 -2 1" xyaxes="1 0 0 0 1 2"/>
<geom type="sphere" size=".4" rgba=".9 .2 .2 1"/></worldbody></mujoco>
"""
_SETTLING = 250  # physics steps in the ten wait steps of an episode


def render(renderer: str) -> dict[str, Any]:
    """Render one frame of a red ball. Return the renderer's name, the time and two colours of the frame."""
    from wpray.system import egl_devices, gl

    gl.prepare("egl" if renderer == "egl" else "osmesa")
    egl_devices.set_egl_device()
    import mujoco

    model = mujoco.MjModel.from_xml_string(_FRAME)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 256, 256) as drawing:
        drawing.update_scene(data, "c")
        began = time.perf_counter()
        image = drawing.render()
        seconds = time.perf_counter() - began
        from OpenGL.GL import GL_RENDERER, glGetString

        name = bytes(glGetString(GL_RENDERER) or b"?").decode(errors="replace")
    return {
        "renderer": name,
        "device": os.environ.get("MUJOCO_EGL_DEVICE_ID"),
        "seconds": seconds,
        "red": float(image[..., 0].mean()),
        "blue": float(image[..., 2].mean()),
    }


def libero() -> dict[str, Any]:
    """Import LIBERO as an env actor does."""
    from wpray.benchmarks.libero.imports import load

    load("libero.libero.envs")
    return {}


def simulator() -> dict[str, Any]:
    """Return how far the bowl of libero_spatial task 5 slides while it settles, cm, and libero_object's brightness.

    The physics runs without the robot's controller, so that any MuJoCo that compiles the scenes can run it.
    """
    import mujoco
    import numpy as np

    from wpray.benchmarks.libero import tasks
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
    image = SceneRenderer(table.env).render("agentview", 256, 256, table.data.qpos, table.model.site_rgba[:, 3])
    return {"mujoco": mujoco.__version__, "slide_cm": 100 * slide, "brightness": float(upright(image).mean())}


def trials() -> dict[str, Any]:
    """Run two trials of the scripted policy. Return their numbers of steps, with None for a trial that failed."""
    from wpray.benchmarks.libero import tasks
    from wpray.benchmarks.libero.environment import LiberoEnvironment
    from wpray.config import Config
    from wpray.policies.factory import build_policy
    from wpray.policies.local import LocalPolicyClient
    from wpray.rollout import run_trial
    from wpray.types import Trial

    environment, policy = LiberoEnvironment(), LocalPolicyClient(build_policy(Config(policy="scripted")))
    task = tasks.list_tasks("libero_object")[0]
    results = [run_trial(environment, policy, Trial(task, trial, seed=0)) for trial in range(2)]
    return {"steps": [result.num_steps if result.success else None for result in results]}


_PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    probe.__name__: probe for probe in (render, libero, simulator, trials)
}


def main(argv: Sequence[str]) -> int:
    """Run the probe that `argv` names."""
    print(json.dumps(_PROBES[argv[0]](*argv[1:])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
