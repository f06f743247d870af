"""C and Fortran routines for compiled code, called by address: MuJoCo's steps, and the parts of LAPACK's `dgesdd`.

numba keeps compiled code with the names of what it calls, so each routine gets its name before that code is loaded.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import llvmlite.binding
import mujoco
from numba import types
from numba.extending import get_cython_function_address

_library = ctypes.CDLL(mujoco._functions.__file__)  # the libmujoco that the bindings use


def _routine(name: str, address: int | None, arguments: list[Any]) -> Any:
    llvmlite.binding.add_symbol(f"wpray_{name}", address)
    return types.ExternalFunction(f"wpray_{name}", types.void(*arguments))


def mujoco_address(name: str) -> int:
    """Return the address of a function of MuJoCo's."""
    address = ctypes.cast(getattr(_library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _mujoco(name: str, *more: Any) -> Any:
    """Return MuJoCo's function, which takes the addresses of the model and of the data, then `more`."""
    return _routine(name, mujoco_address(name), [types.intp, types.intp, *more])


def _linalg(library: str, name: str, arguments: int) -> Any:
    """Return SciPy's routine, which is the one that numba itself uses; it takes addresses."""
    address = get_cython_function_address(f"scipy.linalg.cython_{library}", name)
    return _routine(name, address, [types.intp] * arguments)


def _end_process(message: bytes) -> None:
    # MuJoCo must not continue after an error, and its bindings can raise an exception only from a call of their own. So
    # the process ends: its trial runs again elsewhere, and the log has the reason.
    os.write(2, b"MuJoCo: " + message + b"\n")
    os._exit(1)


# The bindings install their own handler during their calls, so this one is not called then.
_on_error = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_end_process)
ctypes.c_void_p.in_dll(_library, "mju_user_error").value = ctypes.cast(_on_error, ctypes.c_void_p).value

mj_step1, mj_step2 = _mujoco("mj_step1"), _mujoco("mj_step2")
mj_forward_skip = _mujoco("mj_forwardSkip", types.int32, types.int32)
mj_fwd_constraint = _mujoco("mj_fwdConstraint")
mj_jac_site = _mujoco("mj_jacSite", types.voidptr, types.voidptr, types.int32)

dgemm, dgesdd = _linalg("blas", "dgemm", 13), _linalg("lapack", "dgesdd", 14)
dgebd2, dbdsdc = _linalg("lapack", "dgebd2", 10), _linalg("lapack", "dbdsdc", 14)
dorm2r, dorml2 = _linalg("lapack", "dorm2r", 12), _linalg("lapack", "dorml2", 12)
