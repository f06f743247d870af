"""Environment variables that Ray and the libraries read when they are imported: set them before that.

The processes of a local Ray inherit them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from wpray.system.one_thread import ONE_THREAD

WORKER_DEFAULTS = {
    **ONE_THREAD,
    "PYTHONFAULTHANDLER": "1",
    # Env actors use a GPU for rendering without reserving it: Ray must not hide it from them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # An episode (100 to 400 kB) comes back inside the actor's reply: by way of the object store, which Ray uses from
    # 100 kB on, it cost the driver 1.3 ms of CPU instead of 0.8.
    "RAY_max_direct_call_object_size": "2000000",
}
# What nodes may see of the environment of the machine that starts a run, besides: nothing secret.
_PASSED_ON = ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "LIBGL_ALWAYS_SOFTWARE", "PYTORCH_CUDA_ALLOC_CONF")
# Linux's default binds to every interface; a Ray that is told that there will be no other node, to loopback.
_NO_OTHER_NODE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def prepare(joins_a_cluster: bool, environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets what is not set yet. Call it before the first import of ray, numpy or torch."""
    for name, value in WORKER_DEFAULTS.items():
        environ.setdefault(name, value)
    environ["RAY_USAGE_STATS_ENABLED"] = "0"
    environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    if not joins_a_cluster:
        environ[_NO_OTHER_NODE] = "0"


def passed_on(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the nodes of a cluster get of this environment: by allow-list, nothing secret."""
    return {name: environ[name] for name in (*_PASSED_ON, *WORKER_DEFAULTS) if name in environ}
