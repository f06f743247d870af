"""The compiled substeps: LAPACK called by hand, BLAS that may differ from numpy's, MuJoCo called by address."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from wpray.benchmarks.libero import opspace, osc, tasks
from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.benchmarks.libero.imports import load
from wpray.types import FloatArray, Trial

pytestmark = pytest.mark.libero


def _assert_as_robosuites(mass: FloatArray, jac: FloatArray, jac_pos: FloatArray, jac_ori: FloatArray) -> None:
    _, *stock = load("robosuite.utils.control_utils").opspace_matrices(mass, jac, jac_pos, jac_ori)
    for split in {False, opspace.same_bits()}:
        ours = opspace.opspace_matrices(mass, jac, jac_pos, jac_ori, split)
        assert all(np.array_equal(a, b) for a, b in zip(ours, stock, strict=True))


def _random_arms(count: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Inertia (7, 7) and Jacobian (6, 7): ordinary, of wild scales, nearly and exactly singular."""
    random = np.random.default_rng(1)
    for number in range(count):
        half, jac = random.normal(size=(7, 7)), random.normal(size=(6, 7))
        mass = half @ half.T + 1e-3 * np.eye(7)
        if number % 4 == 1:
            scale = 10.0 ** random.uniform(-4, 4, size=7)
            mass, jac = mass * np.outer(scale, scale), jac * 10.0 ** random.uniform(-6, 6, size=(6, 1))
        elif number % 4 == 2:
            jac[5] = jac[4] * random.normal() + 10.0 ** random.uniform(-16, -2) * random.normal(size=7)
            jac[2] = jac[1] + 10.0 ** random.uniform(-16, -2) * random.normal(size=7)
        elif number % 4 == 3:
            jac[random.integers(6)] = 0.0
            jac[:, random.integers(7)] = 0.0
        yield np.asfortranarray(mass), np.asfortranarray(jac)


def test_operational_space_matrices_are_robosuites_to_the_bit() -> None:
    for mass, jac in _random_arms(4000):
        _assert_as_robosuites(mass, jac, np.asfortranarray(jac[:3]), np.asfortranarray(jac[3:]))


@pytest.mark.parametrize("scale", [1e-160, 1e-90, 1e-60, 1e60, 1e90, 1e140])
def test_matrices_that_lapack_scales_keep_their_bits(scale: float) -> None:
    for mass, jac in _random_arms(40):
        jac *= np.sqrt(scale)
        _assert_as_robosuites(mass, jac, np.asfortranarray(jac[:3]), np.asfortranarray(jac[3:]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_is_an_error_as_in_numpy(value: float) -> None:
    matrix = np.eye(6)
    matrix[2, 3] = value
    for split in (False, True):
        with pytest.raises(np.linalg.LinAlgError, match="infs or NaNs"):
            opspace.pseudo_inverse(matrix, split)


def test_lapack_that_gives_other_bits_in_parts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one_bit(matrix: FloatArray, split: bool) -> FloatArray:
        inverse = np.linalg.pinv(matrix)
        return np.nextafter(inverse, np.inf) if split else inverse

    monkeypatch.setattr(opspace, "pseudo_inverse", off_by_one_bit)
    assert not opspace.same_bits.__wrapped__()


def test_a_compiled_product_with_other_bits_than_numpys_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one_bit(matrix: FloatArray, vector: FloatArray, out: FloatArray) -> None:
        out[:] = np.nextafter(np.dot(matrix, vector), np.inf)

    monkeypatch.setattr(osc, "compiled_dot", off_by_one_bit)
    assert not osc._same_dot.__wrapped__(51)


def _trajectory(environment: LiberoEnvironment, trial: Trial) -> list[FloatArray]:
    environment.reset(trial)
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 7))
    seen = []
    for action in actions:
        environment.step(action)
        state = environment.state()
        seen += [*(state[name] for name in ("qpos", "qvel", "eef_pos", "render_qpos"))]
        seen.append(environment._stepper._data.qacc_warmstart)
    return [array.copy() for array in seen]


@pytest.mark.timeout(120)
def test_every_way_through_a_step_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    environment, task = LiberoEnvironment(), tasks.list_tasks("libero_object")[0]
    environment.load(task)
    usual = _trajectory(environment, Trial(task, 0, 0))
    arm = environment._stepper._osc._arm
    for _ in range(300):  # what the controller really sees
        environment._stepper._osc.run(1)
        _assert_as_robosuites(arm.mass, arm.jac, arm.jac_pos, arm.jac_ori)
    monkeypatch.setattr(osc, "same_bits", lambda: False)
    monkeypatch.setattr(osc, "_same_dot", lambda nv: False)
    careful = _trajectory(environment, Trial(task, 0, 0))
    environment.close()
    assert all(np.array_equal(a, b) for a, b in zip(usual, careful, strict=True))
    assert not np.array_equal(usual[0], usual[-5])


def test_an_error_inside_mujoco_ends_the_process_with_its_message() -> None:
    code = """
import ctypes, numba, numpy as np
from wpray.benchmarks.libero import native
fail = native._routine("fail", ctypes.cast(native._library.mju_error_raw, ctypes.c_void_p).value, [numba.types.intp])
message = np.frombuffer(b"out of memory" + bytes(1), np.uint8)
@numba.njit(nogil=True)
def compiled():
    fail(message.ctypes.data)
compiled()
print("it went on")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "MuJoCo: out of memory\n")


def test_the_set_up_compiles_the_controller_before_any_run() -> None:
    code = (
        "import sys; from wpray.benchmarks.libero import osc_math, warm_up; "
        "sys.exit(warm_up.main() or not osc_math.act.signatures)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_step_does_nothing_that_only_a_viewer_or_a_profiler_shows() -> None:
    env, task = LiberoEnvironment(), tasks.list_tasks("libero_object")[0]
    env.load(task)
    env.reset(Trial(task, 0, seed=0))
    data = env._loaded().data
    data.bvh_active[:] = True
    env.step(np.zeros(7))
    still_marked, timed = data.bvh_active.all(), [timer.duration for timer in data.timer]
    env.close()
    assert still_marked
    assert not any(timed)
