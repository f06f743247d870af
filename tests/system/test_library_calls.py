"""Redirected calls inside a real library."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from wpray.system.library_calls import LibraryCalls

# In a process of its own, whose MuJoCo is changed: a box on a plane, whose constraints need a Cholesky solution.
_COUNT = """
import ctypes, mujoco
from wpray.system.library_calls import LibraryCalls

library = ctypes.CDLL(mujoco._functions.__file__)
address = lambda name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value
kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
own, counted = kind(address("mju_cholSolve")), []

@kind
def count(*arguments):
    counted.append(1)
    own(*arguments)

model = mujoco.MjModel.from_xml_string(
    "<mujoco><option jacobian='dense' solver='Newton'/><worldbody><geom type='plane' size='1 1 1'/>"
    "<body pos='0 0 0.1'><freejoint/><geom type='box' size='0.1 0.1 0.1'/></body></worldbody></mujoco>"
)
states = []
for redirect in (False, True, False):
    calls = LibraryCalls(address("mj_step"))
    calls["mju_cholSolve"] = ctypes.cast(count, ctypes.c_void_p).value if redirect else address("mju_cholSolve")
    assert (calls["mju_cholSolve"] == address("mju_cholSolve")) is not redirect
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 20)
    states.append((bool(counted), data.qpos.tobytes()))
    counted.clear()
assert [found for found, _ in states] == [False, True, False], states
assert len({qpos for _, qpos in states}) == 1
assert "mju_cholSolve" in calls and "mju_noSuchFunction" not in calls
"""


@pytest.mark.libero  # it needs MuJoCo
def test_a_librarys_own_calls_go_elsewhere_and_back() -> None:
    subprocess.run([sys.executable, "-c", _COUNT], check=True, timeout=60)


def test_a_function_that_is_not_called_is_not_found() -> None:
    calls = LibraryCalls(_address_of_python())
    assert "no_such_function" not in calls
    with pytest.raises(KeyError):
        calls["no_such_function"]
    with pytest.raises(KeyError):
        calls["no_such_function"] = 0


def test_an_address_outside_all_libraries_is_an_error() -> None:
    with pytest.raises(OSError, match="no library holds"):
        LibraryCalls(16)


def _address_of_python() -> int:
    """Return the address of a function of the library, or of the program, that holds Python."""
    address = ctypes.cast(ctypes.pythonapi.Py_GetVersion, ctypes.c_void_p).value
    assert address is not None
    return address
