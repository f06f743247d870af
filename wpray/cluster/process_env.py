"""Environment variables that Ray and the libraries read at import, so set them before.

The processes of a local Ray inherit them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from wpray.system.one_thread import ONE_THREAD

WORKER_DEFAULTS = {
    **ONE_THREAD,
    "PYTHONFAULTHANDLER": "1",
    # Env actors render on a GPU without reserving it, so Ray must not hide it from them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # An episode (100 to 400 kB) returns inside the actor's reply. The object store, which Ray uses from 100 kB on,
    # costs the driver 1.3 ms of CPU instead of 0.8.
    "RAY_max_direct_call_object_size": "2000000",
    # MuJoCo's model and data lie in a few large blocks. In huge pages they cost the processor fewer look-ups of
    # addresses: steps of many environments take 3 to 10% less time. Other C libraries than glibc ignore it.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Further variables of the starting machine that nodes may see; none is secret.
_PASSED_ON = (
    "MUJOCO_GL",
    "MUJOCO_EGL_DEVICE_ID",
    "LIBGL_ALWAYS_SOFTWARE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "LIBERO_PLUS_ASSET_PATH",
)
# On Linux, Ray binds to every interface by default; to loopback alone if this says that no other node will join.
_NO_OTHER_NODE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

# Of all workers of a local Ray, by default 15. Env actors raise theirs to the highest, 19, and a policy at 15 would get
# hardly more of the cores than each of them.
_NICENESS = "RAY_worker_niceness"


def prepare(joins_a_cluster: bool, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that are not set yet. Call it before the first import of ray, numpy or torch."""
    for name, value in WORKER_DEFAULTS.items():
        environ.setdefault(name, value)
    environ["RAY_USAGE_STATS_ENABLED"] = "0"
    environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    if not joins_a_cluster:
        environ[_NO_OTHER_NODE] = "0"
        environ.setdefault(_NICENESS, "0")


def passed_on(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what the nodes of a cluster get of this environment: by allow-list, nothing secret."""
    return {name: environ[name] for name in (*_PASSED_ON, *WORKER_DEFAULTS) if name in environ}
