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


def trials(suite: str, benchmark: str, policy: str) -> dict[str, Any]:
    """Run two trials of a suite's first task; return steps by trial, None for one that did not succeed."""
    from wpray.benchmarks.factory import benchmark_of, list_tasks, make_environment
    from wpray.config import Config
    from wpray.policies.factory import build_policy
    from wpray.policies.local import LocalPolicyClient
    from wpray.rollout import RolloutSettings, run_trial
    from wpray.types import Trial

    client = LocalPolicyClient(build_policy(Config(policy=policy, task_suite=suite, benchmark=benchmark)))
    environment = make_environment(suite, "wpray", benchmark)
    task = list_tasks(suite, benchmark=benchmark)[0]
    settings = RolloutSettings(action=benchmark_of(suite, benchmark).action_spec(suite))
    results = [run_trial(environment, client, Trial(task, trial, seed=0), settings) for trial in range(2)]
    return {"steps": [result.num_steps if result.success else None for result in results]}


_PROBES: dict[str, Callable[..., dict[str, Any]]] = {probe.__name__: probe for probe in (render, trials)}


def main(argv: Sequence[str]) -> int:
    """Run the probe that `argv` names."""
    print(json.dumps(_PROBES[argv[0]](*argv[1:])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
