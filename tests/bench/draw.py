"""Rate at which a drawer draws LIBERO's scenes on this machine, and whether its pixels are an environment's own.

`python -m tests.bench.draw save FILE` records compiled models and poses, where LIBERO is installed.
`python -m tests.bench.draw measure FILE` draws them, with EGL where there is a GPU; it needs MuJoCo, PyOpenGL,
numpy, Pillow and pyarrow alone.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import lzma
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wpray.system import gl

gl.prepare(gl.resolve("auto"))  # MuJoCo reads it when it is imported

from wpray.benchmarks.libero.drawing import DrawnModel, LiberoDrawer  # noqa: E402
from wpray.types import DrawRequest, ImageArray, ImageSpec  # noqa: E402

Pictures = Mapping[str, ImageArray]

_TASKS = (("libero_goal", 7), ("libero_10", 2))  # with few textures
_CAMERAS = ("agentview", "robot0_eye_in_hand")
_STEPS, _POSES = 5, 8  # control steps from one pose to the next; poses of a task
_POLYGONS = ("normal", "vert", "map", "mapnum", "mapadr")
_SIZES = (1, 2, 4, 8, 16)  # requests a turn
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 2, "dict_size": 2**28}]  # scenes share meshes, far from each other
_SECONDS = 3.0  # of each measurement


def save(file: Path, tasks: Sequence[tuple[str, int]] = _TASKS) -> None:
    """Record what environments of `tasks` send to a drawer."""
    from wpray.benchmarks.libero.environment import LiberoEnvironment
    from wpray.benchmarks.libero.tasks import list_tasks
    from wpray.types import ObservationSpec, Trial

    arrays: dict[str, Any] = {}
    for number, (suite, task_id) in enumerate(tasks):
        env, client, rng = LiberoEnvironment(), _Recorder(), np.random.default_rng(0)
        env.draw_with(client)
        task = list_tasks(suite)[task_id]
        env.load(task)
        env.reset(Trial(task, 0, seed=0))
        for _ in range(_POSES):
            for _ in range(_STEPS):
                env.step(rng.uniform(-0.5, 0.5, 7))
            env.observe(ObservationSpec())
        env.close()
        arrays[f"model {number}"] = _drawn_part(client.recipe)
        for index, request in enumerate(client.requests):
            arrays |= {f"pose {number} {index} {name}": values for name, values in request.pose.items()}
    plain = io.BytesIO()
    np.savez(plain, **arrays)
    file.write_bytes(lzma.compress(plain.getbuffer(), filters=_FILTERS))


class _Recorder:
    """Client that draws nothing."""

    def __init__(self) -> None:
        self.requests: list[DrawRequest] = []
        self.recipe = b""

    def draw(self, request: DrawRequest, model_data: Callable[[], bytes]) -> dict[str, ImageArray]:
        self.recipe = model_data()
        self.requests.append(request)
        return {role: np.zeros((1, 1, 3), dtype=np.uint8) for role in request.views}


def _drawn_part(recipe: bytes) -> ImageArray:
    """Return MuJoCo's file of the scene, with zeros for what only physics needs, so that it compresses well."""
    import mujoco

    from wpray.benchmarks.libero.imports import asset_roots
    from wpray.benchmarks.libero.recipe import compile_recipe

    model = compile_recipe(recipe, asset_roots())
    for name in ("bvh_aabb", "bvh_child", "bvh_nodeid", *(f"mesh_poly{part}" for part in _POLYGONS)):
        getattr(model, name)[:] = 0
    data = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, data)
    return data


def measure(file: Path) -> None:
    """Print seconds to learn each model, the requests a second by their number in a turn, and what differs."""
    models, requests = _read(file)
    drawer = _SavedDrawer(models)
    for model in models:
        began = time.perf_counter()
        drawer.learn(model, b"")
        learned = time.perf_counter() - began
        drawer.draw([next(request for request in requests if request.model == model)])
        print(f"model {model}: uploaded in {learned:.2f} s")
    pictures = drawer.draw(requests)
    print(f"pictures: SHA-256 {_digest(pictures)}; {_differing(models, requests, pictures)} of them differ")
    together = _SavedDrawer(models, together=True)
    for model in models:
        together.learn(model, b"")
    print(f"pictures that are submitted together: SHA-256 {_digest(together.draw(requests))}")
    for size in _SIZES:
        rates = [_rate(each, requests, size) for each in (drawer, together)]
        print(f"{size:3} requests of {len(_CAMERAS)} frames a call: {rates[0]:7.1f} a second, together {rates[1]:7.1f}")
    together.close()
    drawer.close()


class _SavedDrawer(LiberoDrawer):
    """Drawer of models that were compiled elsewhere."""

    def __init__(self, models: Mapping[str, Any], together: bool = False) -> None:
        super().__init__({}, together=together)
        self._models = models

    def learn(self, model: str, data: bytes) -> None:
        self._drawn[model] = DrawnModel(copy.copy(self._models[model]), self._gl)  # it gives its memory back


def _read(file: Path) -> tuple[dict[str, Any], list[DrawRequest]]:
    """Return the models by number and the requests, those of all models in turn."""
    import mujoco

    saved = np.load(io.BytesIO(lzma.decompress(file.read_bytes())))
    models: dict[str, Any] = {}
    poses: dict[tuple[int, str], dict[str, Any]] = {}
    for key in saved.files:
        kind, number, *rest = key.split()
        if kind == "model":
            models[number] = mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": saved[key].tobytes()})
        else:
            poses.setdefault((int(rest[0]), number), {})[rest[1]] = saved[key]
    views = {name: (name, ImageSpec()) for name in _CAMERAS}
    return models, [DrawRequest(number, pose, views) for (_, number), pose in sorted(poses.items())]


def _differing(models: Mapping[str, Any], requests: Sequence[DrawRequest], pictures: Sequence[Pictures]) -> int:
    """Return how many pictures differ from those of a drawer that has one model in a context of its own."""
    found = 0
    for model in models:
        alone = _SavedDrawer(models)
        alone.learn(model, b"")
        for request, drawn in zip(requests, pictures, strict=True):
            if request.model == model:
                (expected,) = alone.draw([request])
                found += sum(not np.array_equal(drawn[role], expected[role]) for role in expected)
        alone.close()
    return found


def _rate(drawer: LiberoDrawer, requests: Sequence[DrawRequest], size: int) -> float:
    """Return how many requests a second are drawn if `size` of them come at once."""
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < _SECONDS:
        drawer.draw([requests[(done + index) % len(requests)] for index in range(size)])
        done += size
    return done / elapsed


def _digest(pictures: Sequence[Pictures]) -> str:
    text = hashlib.sha256()
    for drawn in pictures:
        for role in sorted(drawn):
            text.update(drawn[role].tobytes())
    return text.hexdigest()[:16]


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("save", "measure"))
    parser.add_argument("file", type=Path)
    given = parser.parse_args(argv)
    {"save": save, "measure": measure}[given.what](given.file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
