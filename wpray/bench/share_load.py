"""Work beside a policy, each kind in a process of its own: a busy core, or frames at a given rate.

`python -m wpray.bench.share_load busy | draw FRAMES_PER_SECOND FACES SIZE` prints a line of JSON when it is ready and,
once its input ends, another with what it has done.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

_EYES = 2  # frames that an environment draws at a time
_ROUND, _RINGS = 100, 51  # vertices of a mesh around and along its axis, about 10,000 faces
_WARM_UP, _TRIED = 5, 20  # frames


def main(argv: Sequence[str]) -> None:
    """Do the work that `argv` names until the input ends."""
    if argv[0] == "busy":
        _report({})
        while not _ended(0):
            sum(range(200_000))
        _report({})
        return
    rate, faces, size = float(argv[1]), int(argv[2]), int(argv[3])
    scene = _Scene(faces, size)
    _report({"gpu_ms": scene.gpu_ms()})
    _report(_drawn(scene, rate))


def _report(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _ended(seconds: float) -> bool:
    """Wait for at most `seconds` and return whether the input has ended."""
    return bool(select.select([sys.stdin], [], [], max(0.0, seconds))[0])


def _drawn(scene: _Scene, rate: float) -> dict[str, float]:
    """Draw until the input ends. Return the frames and the seconds."""
    frames, began = 0, time.monotonic()
    due = began
    while not _ended(due - time.monotonic()):
        for _ in range(_EYES):
            scene.draw()
        frames += _EYES
        due = max(due + _EYES / rate, time.monotonic() - _EYES / rate)
    return {"frames": frames, "seconds": time.monotonic() - began}


class _Scene:
    """MuJoCo scene of about `faces` triangles in view, with MuJoCo's own renderer as in an environment."""

    def __init__(self, faces: int, size: int) -> None:
        import mujoco

        model = mujoco.MjModel.from_xml_string(scene_xml(faces))
        self._data = mujoco.MjData(model)
        mujoco.mj_forward(model, self._data)
        self._renderer = mujoco.Renderer(model, size, size)
        self._angle = 0.0
        self._camera = mujoco.MjvCamera()
        self._camera.distance, self._camera.elevation = 2.5, -30.0

    def draw(self) -> None:
        """Draw a frame from the next angle and read it."""
        self._angle += 1.0
        self._camera.azimuth = self._angle
        self._renderer.update_scene(self._data, self._camera)
        self._renderer.render()

    def gpu_ms(self) -> float:
        """Return the median milliseconds that the GPU takes to draw a frame and to hand it over."""
        from OpenGL import GL

        for _ in range(_WARM_UP):
            self.draw()  # the first frame makes the context current
        query = int(np.ravel(GL.glGenQueries(1))[0])
        taken = []
        for _ in range(_TRIED):
            GL.glBeginQuery(GL.GL_TIME_ELAPSED, query)
            self.draw()
            GL.glEndQuery(GL.GL_TIME_ELAPSED)
            taken.append(int(np.ravel(GL.glGetQueryObjectuiv(query, GL.GL_QUERY_RESULT))[0]) / 1e6)
        return float(np.median(taken))


def scene_xml(faces: int) -> str:
    """Return a model of spheres on a grid, with about `faces` triangles in all."""
    around, along = np.meshgrid(np.arange(_ROUND), np.arange(_RINGS), indexing="xy")
    turn, height = 2 * np.pi * around / _ROUND, np.pi * along / (_RINGS - 1)
    points = np.stack([np.sin(height) * np.cos(turn), np.sin(height) * np.sin(turn), np.cos(height)], axis=-1)
    here = along[:-1] * _ROUND + around[:-1]
    right = along[:-1] * _ROUND + (around[:-1] + 1) % _ROUND
    triangles = np.concatenate(
        [np.stack([here, here + _ROUND, right], -1), np.stack([right, here + _ROUND, right + _ROUND], -1)]
    ).reshape(-1, 3)
    count = max(1, round(faces / len(triangles)))
    side = int(np.ceil(count**0.5))
    geoms = "".join(
        f'<geom type="mesh" mesh="ball" contype="0" conaffinity="0" rgba="{0.3 + 0.7 * (i % 3) / 2:.2f} .5 .6 1" '
        f'pos="{(i % side - side / 2) / side:.3f} {(i // side - side / 2) / side:.3f} 0"/>'
        for i in range(count)
    )
    size, vertices, corners = 0.4 / side, _numbers(points.reshape(-1)), _numbers(triangles.reshape(-1))
    return (
        f'<mujoco><visual><global offwidth="640" offheight="640"/></visual><asset><mesh name="ball" inertia="shell" '
        f'scale="{size} {size} {size}" vertex="{vertices}" face="{corners}"/>'
        f'</asset><worldbody><light pos="0 0 3" castshadow="false"/>{geoms}</worldbody></mujoco>'
    )


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.5g}" if values.dtype.kind == "f" else str(value) for value in values)


if __name__ == "__main__":
    main(sys.argv[1:])
