"""Drawer of LIBERO's scenes, in a process that has neither their environments nor their simulation."""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import mujoco
from numpy.typing import NDArray

from wpray.benchmarks.drawing import check_digest
from wpray.benchmarks.libero.observed import CAMERA_SIZE, QPOS, SITE_ALPHA
from wpray.benchmarks.libero.recipe import Roots, compile_recipe
from wpray.benchmarks.libero.rendering import GlContext, SceneRenderer
from wpray.benchmarks.libero.visible import Fields, visible_fields
from wpray.benchmarks.views import policy_view
from wpray.types import DrawRequest, ImageArray

_MOST_BYTES = 8 * 2**30  # of compiled scenes; each takes 0.15 to 0.26 GiB, and about as much of the GPU
_COMPILERS = 4  # scenes that compile at the same time
_MOST_PREPARED = 16  # compiled scenes that wait to be learned
_PAGE, _DONT_NEED = 4096, 4  # of Linux's madvise
# Fields that nothing reads once they are uploaded, nearly all of a scene's memory.
_UPLOADED = (
    *("tex_data", "mesh_vert", "mesh_normal", "mesh_texcoord", "mesh_face", "mesh_facenormal", "mesh_facetexcoord"),
    *("mesh_graph", "mesh_polynormal", "mesh_polyvert", "mesh_polymap", "mesh_polymapadr", "mesh_polymapnum"),
    *("bvh_aabb", "bvh_child", "bvh_nodeid", "bvh_depth"),
)


class LiberoDrawer:
    """Drawer of the models that it drew last, all in one GL context."""

    def __init__(self, roots: Roots, most_bytes: int = _MOST_BYTES, together: bool = False) -> None:
        """Make the GL context. Raises what the GL library raises if it does not work.

        `roots` are the folders that hold the scenes' meshes and textures. Scenes of `most_bytes` are kept, as compiled.
        `together`: submit all pictures of a call before the first is read.
        """
        self._gl = GlContext()
        self._roots = roots
        self._most, self._together = most_bytes, together
        self._lock = threading.Lock()
        self._compilers = ThreadPoolExecutor(_COMPILERS, "compile")
        self._compiled: dict[str, Future[mujoco.MjModel]] = {}  # prepared, and not learned yet
        self._drawn: OrderedDict[str, DrawnModel] = OrderedDict()  # the longest unused first

    def knows(self, model: str) -> bool:
        """Return True if the model of this digest was learned and is not forgotten."""
        return model in self._drawn

    def prepare(self, model: str, data: bytes) -> None:
        """Compile a scene in a thread of its own, and wait for it; `learn` raises what fails."""
        if model not in self._drawn:
            wait([self._compiling(model, data)])

    def learn(self, model: str, data: bytes) -> None:
        """Upload a compiled scene to the GPU; forget those that were drawn longest ago if there are too many.

        Raises BadInputError if `data` has another digest, or if this machine's MuJoCo or assets are others.
        """
        if model in self._drawn:
            return
        try:
            compiled = self._compiling(model, data).result()
            while self._drawn and compiled.nbuffer + sum(drawn.size for drawn in self._drawn.values()) > self._most:
                self._drawn.popitem(last=False)[1].close()
            self._drawn[model] = DrawnModel(compiled, self._gl)
        finally:
            with self._lock:
                self._compiled.pop(model, None)

    def draw(self, requests: Sequence[DrawRequest]) -> list[dict[str, ImageArray]]:
        """Return the pictures of each request by role, pixel-identical to those of `Environment.observe`.

        Raises KeyError if it does not know a request's model.
        """
        for request in requests:
            self._drawn.move_to_end(request.model)
        drawn = (self._drawn[request.model].submit(request, self._together) for request in requests)
        return [pictures() for pictures in (list(drawn) if self._together else drawn)]

    def close(self) -> None:
        """Free all models and the GL context."""
        self._compilers.shutdown(cancel_futures=True)
        while self._drawn:
            self._drawn.popitem()[1].close()
        self._gl.close()

    def _compiling(self, model: str, data: bytes) -> Future[mujoco.MjModel]:
        with self._lock:
            if model not in self._compiled:
                self._drop_what_nobody_learned()
                self._compiled[model] = self._compilers.submit(self._compile, model, data)
            return self._compiled[model]

    def _drop_what_nobody_learned(self) -> None:
        """Make room for a scene to compile, because who asked for another may have gone."""
        done = [model for model, compiled in self._compiled.items() if compiled.done()]
        for model in done[: max(0, len(self._compiled) + 1 - _MOST_PREPARED)]:
            del self._compiled[model]

    def _compile(self, model: str, data: bytes) -> mujoco.MjModel:
        check_digest(model, data)
        return compile_recipe(data, self._roots)


class DrawnModel:
    """Uploaded scene, and what it is drawn with."""

    def __init__(self, model: mujoco.MjModel, gl: GlContext) -> None:
        self._model, self.size = model, int(model.nbuffer)  # bytes as compiled
        self._compiled = visible_fields(self._model)
        self._changed: set[str] = set()  # fields that are not as they were compiled
        self._renderer = SceneRenderer(self._model, gl)
        _give_back(model)

    def submit(self, request: DrawRequest, later: bool) -> Callable[[], dict[str, ImageArray]]:
        """Draw, and return what gives the pictures by role; `later`: only then are they read."""
        pose = dict(request.pose)
        qpos, site_alpha = pose.pop(QPOS), pose.pop(SITE_ALPHA)
        self._change(pose)
        cameras = list(dict.fromkeys(camera for camera, _ in request.views.values()))
        size = CAMERA_SIZE, CAMERA_SIZE
        if later:
            submitted = self._renderer.submit(cameras, *size, qpos, site_alpha)
            return lambda: _views(request, cameras, [readback.picture() for readback in submitted])
        pictures = self._renderer.pictures(cameras, *size, qpos, site_alpha)
        return lambda: _views(request, cameras, pictures)

    def close(self) -> None:
        """Free what it takes in OpenGL."""
        self._renderer.close()

    def _change(self, pose: dict[str, NDArray[Any]]) -> None:
        """Put the model's fields into the pose, and those that it does not name back to how they were compiled."""
        values: Fields = {name: self._compiled[name] for name in self._changed} | pose
        for name, value in values.items():
            getattr(self._model, name)[:] = value
        self._changed = set(pose)


def _views(request: DrawRequest, cameras: Sequence[str], drawn: Sequence[ImageArray]) -> dict[str, ImageArray]:
    pictures = dict(zip(cameras, drawn, strict=True))
    return {role: policy_view(pictures[camera], spec) for role, (camera, spec) in request.views.items()}


def _give_back(model: mujoco.MjModel) -> None:
    """Give the memory of what is uploaded back to the system; it reads as zeros afterwards."""
    libc = ctypes.CDLL(None)
    for values in (getattr(model, name) for name in _UPLOADED if hasattr(model, name)):
        first, last = values.ctypes.data, values.ctypes.data + values.nbytes
        first, last = -(-first // _PAGE) * _PAGE, last // _PAGE * _PAGE  # whole pages
        if first < last:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONT_NEED)
    libc.malloc_trim(0)
