"""MuJoCo's dense products and factors without the zeros: the same bits, or an answer that says that MuJoCo must."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from wpray.benchmarks.libero import skyline, solver
from wpray.benchmarks.libero.native import mujoco_address
from wpray.types import FloatArray

pytestmark = pytest.mark.libero

_C_ADDRESS, _C_INT = ctypes.c_void_p, ctypes.c_int
_FUNCTIONS = {
    "mju_mulMatVec": ctypes.CFUNCTYPE(None, *[_C_ADDRESS] * 3, *[_C_INT] * 2),
    "mju_mulMatTVec": ctypes.CFUNCTYPE(None, *[_C_ADDRESS] * 3, *[_C_INT] * 2),
    "mju_sqrMatTD": ctypes.CFUNCTYPE(None, *[_C_ADDRESS] * 3, *[_C_INT] * 2),
    "mju_cholFactor": ctypes.CFUNCTYPE(_C_INT, _C_ADDRESS, _C_INT, ctypes.c_double),
    "mju_cholSolve": ctypes.CFUNCTYPE(None, *[_C_ADDRESS] * 3, _C_INT),
}
SHAPES = [(1, 1), (7, 3), (30, 4), (90, 45), (115, 51), (235, 43), (40, 60)]


def _own(name: str, *arguments: Any) -> Any:
    return _FUNCTIONS[name](mujoco_address(name))(*_addresses(arguments))


def _addresses(arguments: tuple[Any, ...]) -> Iterator[Any]:
    return (each.ctypes.data if isinstance(each, np.ndarray) else each for each in arguments)


class Problem:
    """Jacobian (rows, columns) as contacts of free bodies have it, and what is computed from it."""

    def __init__(self, rows: int, columns: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.rows, self.columns = rows, columns
        self.jacobian = np.zeros((rows, columns))
        for row in range(rows):
            begin = self.random.integers(0, columns)
            values = self.random.normal(size=columns)[begin : begin + self.random.choice([0, 1, 3, 6, 6, 12])]
            self.jacobian[row, begin : begin + len(values)] = np.where(self.random.random(len(values)) < 0.8, values, 0)
        self.begins, self.ends = np.zeros((2, rows), np.int64)
        self.indices, self.memory = np.zeros(columns, np.int64), np.zeros(columns)
        skyline.find_spans(self.jacobian.ctypes.data, rows, columns, self.begins, self.ends)

    def product(self, vector: FloatArray) -> tuple[bool, bool]:
        """Return whether the function is sure of J v, and whether that has MuJoCo's bits."""
        return self._of_jacobian("mju_mulMatVec", skyline.multiply, vector, self.rows)

    def transposed(self, vector: FloatArray) -> tuple[bool, bool]:
        """Return the same of J' v."""
        return self._of_jacobian("mju_mulMatTVec", skyline.multiply_transposed, vector, self.columns)

    def square(self, diagonal: FloatArray) -> tuple[bool, bool]:
        """Return the same of J' D J."""
        return self._of_jacobian("mju_sqrMatTD", skyline.square, diagonal, self.columns**2, self.indices)

    def _of_jacobian(
        self, name: str, function: Callable[..., bool], vector: FloatArray, size: int, *more: Any
    ) -> tuple[bool, bool]:
        ours, expected = np.full((2, size), 7.0)
        given = (self.jacobian, vector, self.rows, self.columns)
        _own(name, expected, *given)
        surely = function(*_addresses((ours, *given)), self.begins, self.ends, *more)
        return surely, ours.tobytes() == expected.tobytes()

    def matrix(self) -> FloatArray:
        """Return a positive definite matrix (columns, columns) with the Jacobian's zeros."""
        weights = self.random.uniform(0.1, 2.0, self.rows)
        return np.ascontiguousarray(self.jacobian.T @ (weights[:, None] * self.jacobian) + np.eye(self.columns))


def factorized(matrix: FloatArray, least: float = 1e-15) -> tuple[bool, bool]:
    """Return whether the function is sure of the factor, and whether that has MuJoCo's bits."""
    ours, expected, size = matrix.copy(), matrix.copy(), len(matrix)
    _own("mju_cholFactor", expected, size, least)
    surely = skyline.factorize(ours.ctypes.data, size, least, np.zeros(size, np.int64), np.zeros(size))
    return surely, ours.tobytes() == expected.tobytes()


def solved(factor: FloatArray, vector: FloatArray) -> tuple[bool, bool]:
    """Return the same of the solution for a factor."""
    ours, expected = np.full((2, len(vector)), 7.0)
    _own("mju_cholSolve", expected, factor, vector, len(vector))
    surely = skyline.solve(*_addresses((ours, factor, vector)), len(vector), np.zeros(len(vector), np.int64))
    return surely, ours.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_left_out_the_bits_are_mujocos(shape: tuple[int, int], seed: int) -> None:
    problem = Problem(*shape, seed)
    for row in range(problem.rows):
        columns = np.flatnonzero(problem.jacobian[row])
        if len(columns):
            assert (problem.begins[row], problem.ends[row]) == (columns[0], columns[-1] + 1)
        else:
            assert problem.begins[row] >= problem.ends[row]
    assert problem.product(problem.random.normal(size=problem.columns)) == (True, True)
    forces = problem.random.normal(size=problem.rows) * (problem.random.random(problem.rows) < 0.5)
    assert problem.transposed(forces) == (True, True)
    assert problem.square(np.abs(forces)) == (True, True)
    matrix = problem.matrix()
    assert factorized(matrix) == (True, True)
    _own("mju_cholFactor", matrix, len(matrix), 1e-15)
    assert solved(matrix, problem.random.normal(size=problem.columns)) == (True, True)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_sums_that_are_zero_have_mujocos_sign(zero: float) -> None:
    for seed in range(20):
        problem = Problem(30, 13, seed)
        problem.jacobian[problem.jacobian == 0] = 0.0
        vector = np.where(problem.random.random(13) < 0.5, zero, problem.random.normal(size=13))
        for motion in (np.full(13, zero), vector, -vector, problem.random.choice([5e-324, -5e-324], 13)):
            assert problem.product(motion) == (True, True)
        for forces in (np.full(30, zero), problem.random.choice([zero, 1.0, -1.0, -5e-324], 30)):
            assert problem.transposed(forces) == (True, True)
            assert problem.square(forces) == (True, True)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e200])
def test_what_is_not_finite_is_left_to_mujoco(value: float) -> None:
    problem = Problem(30, 13)
    for name, size in {"product": 13, "transposed": 30}.items():
        vector = problem.random.normal(size=size)
        vector[size // 2] = value
        assert getattr(problem, name)(vector)[0] is False
    diagonal = np.ones(30)
    diagonal[np.argmax(problem.ends - problem.begins)] = value
    assert problem.square(diagonal) in ((False, True), (False, False), (True, True))
    assert problem.square(diagonal)[0] is bool(np.isfinite(value))


def test_factors_that_are_not_sure_are_left_to_mujoco() -> None:
    matrix = Problem(30, 13).matrix()
    assert factorized(matrix, least=matrix.max())[0] is False  # MuJoCo corrects the diagonal and counts the rank
    for place in ((5, 5), (5, 2)):
        for value in (np.nan, np.inf, -np.inf):
            spoilt = matrix.copy()
            spoilt[place] = value
            assert factorized(spoilt)[0] is False
    spoilt = np.eye(13)
    spoilt[7, 3] = -0.0
    assert factorized(spoilt)[0] is False
    spoilt[12, 12] = 0.0
    assert factorized(spoilt, least=0.0)[0] is False


def test_solutions_that_are_not_sure_are_left_to_mujoco() -> None:
    factor = Problem(30, 13).matrix()
    _own("mju_cholFactor", factor, 13, 1e-15)
    vector = np.random.default_rng(1).normal(size=13)
    for value in (-0.0, np.inf, -np.inf, np.nan):
        vector[4] = value
        assert solved(factor, vector)[0] is False
    vector[4] = 0.0
    assert solved(factor, vector) == (True, True)
    assert solved(factor, np.zeros(13)) == (True, True)
    factor[7, 7] = 0.0
    assert solved(factor, vector)[0] is False


@pytest.mark.parametrize("name", list(_FUNCTIONS))
def test_a_library_that_adds_in_another_order_keeps_its_own_sums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert solver._leaves_out_the_same()

    def differently(*arguments: Any) -> Any:
        answer = _FUNCTIONS[name](mujoco_address(name))(*arguments)
        ctypes.c_double.from_address(arguments[0]).value *= 1 + 2**-50
        return answer

    other = _FUNCTIONS[name](differently)
    place = ctypes.cast(other, ctypes.c_void_p).value
    monkeypatch.setattr(solver, "mujoco_address", lambda asked: place if asked == name else mujoco_address(asked))
    assert not solver._leaves_out_the_same()
