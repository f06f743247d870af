"""robosuite's operational space matrices, with their bits and in less time.

numba's `np.linalg.pinv` calls LAPACK's `dgesdd`, which for a small square matrix runs four other routines of LAPACK and
spends the rest of its time on block sizes and workspaces. Here the four are called directly. Each process tests once
whether that gives the same bits with its LAPACK (`same_bits`); if not, it calls `dgesdd`.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba.np.linalg import F_INT_nptype as fortran_int

from wpray.benchmarks.libero.native import dbdsdc, dgebd2, dgemm, dgesdd, dorm2r, dorml2
from wpray.types import FloatArray, IntArray

_LARGEST, _SMALLEST = 1e100, 1e-100  # beyond these dgesdd scales a matrix, or finds that it is not finite
_CUT = 1e-15  # threshold of np.linalg.pinv, which drops smaller singular values
_LETTERS = np.frombuffer(b"UILNRSC", np.uint8)
_FACTORS = np.array([1.0, 0.0])
_INTEGER, _DOUBLE = np.dtype(fortran_int).itemsize, 8


@numba.njit(cache=True)
def opspace_matrices(
    mass: FloatArray, jac: FloatArray, jac_pos: FloatArray, jac_ori: FloatArray, split: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return `lambda_pos` (3, 3), `lambda_ori` (3, 3) and the nullspace matrix (7, 7), as robosuite's namesake.

    `mass` (7, 7), `jac` (6, 7), `jac_pos` and `jac_ori` (3, 7) must be laid out as there. `split`: see `same_bits`.
    """
    mass_inv = np.linalg.inv(mass)
    lambda_full = pseudo_inverse(np.dot(np.dot(jac, mass_inv), jac.transpose()), split)
    lambda_pos = pseudo_inverse(np.dot(np.dot(jac_pos, mass_inv), jac_pos.transpose()), split)
    lambda_ori = pseudo_inverse(np.dot(np.dot(jac_ori, mass_inv), jac_ori.transpose()), split)
    jac_bar = np.dot(mass_inv, jac.transpose()).dot(lambda_full)
    nullspace = np.eye(jac.shape[-1], jac.shape[-1]) - np.dot(jac_bar, jac)
    return lambda_pos, lambda_ori, nullspace


@numba.njit(cache=True)
def pseudo_inverse(matrix: FloatArray, split: bool) -> FloatArray:
    """Return (n, n) in Fortran's order, of `matrix` (n, n) in C's: step by step what numba's `np.linalg.pinv` does.

    Raises LinAlgError if the matrix is not finite, ValueError if the decomposition does not converge.
    """
    n = matrix.shape[0]
    room = np.empty((6 * n + 9, n))  # the matrix, u, vt (each in Fortran's order), singular values, workspace
    integers = np.empty(8 * n + 4, dtype=fortran_int)  # n, n - 1, how many values count, LAPACK's info, workspace
    integers[0], integers[1] = n, n - 1
    room[:n] = matrix.T
    largest = _largest(matrix)
    if split and _SMALLEST < largest < _LARGEST:
        _decompose_in_steps(n, room, integers)
    else:
        _decompose(n, room, integers)
    if integers[3] != 0:
        raise ValueError("Internal algorithm failed to converge.")
    integers[2] = _apply(room[3 * n], room[2 * n : 3 * n])
    inverse = np.empty((n, n))
    _multiply(n, room, integers, inverse)
    return inverse.T


@numba.njit(cache=True)
def _largest(matrix: FloatArray) -> float:
    largest = 0.0
    for value in matrix.flat:
        if not np.isfinite(value):
            raise np.linalg.LinAlgError("Array must not contain infs or NaNs.")
        largest = max(largest, abs(value))
    return largest


@numba.njit(cache=True)
def _apply(values: FloatArray, vt: FloatArray) -> int:
    """Divide `vt` by the singular values; return how many count, as they are not too small."""
    cut, counted = values[0] * _CUT, 1
    for k in range(values.size):
        if values[k] > cut:
            values[k] = 1.0 / values[k]
            counted = k + 1
    for row in range(values.size):
        for column in range(counted):
            vt[row, column] *= values[column]
    return counted


@numba.njit(cache=True)
def _decompose(n: int, room: FloatArray, integers: IntArray) -> None:
    """Decompose by singular values as dgesdd does, with the workspace that it asks for."""
    size, a, line = integers.ctypes.data, room.ctypes.data, _DOUBLE * n
    info, iwork = size + 3 * _INTEGER, size + 4 * _INTEGER
    u, vt, values = a + line * n, a + 2 * line * n, a + 3 * line * n
    length, wish = np.full(1, -1, dtype=fortran_int), np.empty(1)
    some = _LETTERS.ctypes.data + 5
    dgesdd(some, size, size, a, size, values, u, size, vt, size, wish.ctypes.data, length.ctypes.data, iwork, info)
    work = np.empty(int(wish[0]))
    length[0] = work.size
    dgesdd(some, size, size, a, size, values, u, size, vt, size, work.ctypes.data, length.ctypes.data, iwork, info)
    work[0] = length[0]  # keeps the buffers alive until here


@numba.njit(cache=True)
def _decompose_in_steps(n: int, room: FloatArray, integers: IntArray) -> None:
    """Decompose by the calls that dgesdd makes."""
    size, a, line = integers.ctypes.data, room.ctypes.data, _DOUBLE * n
    less, info, iwork = size + _INTEGER, size + 3 * _INTEGER, size + 4 * _INTEGER
    upper = _LETTERS.ctypes.data
    vectors, left, plain, right = upper + 1, upper + 2, upper + 3, upper + 4
    u, vt, values = a + line * n, a + 2 * line * n, a + 3 * line * n
    beside, tau_q, tau_p, work = values + line, values + 2 * line, values + 3 * line, values + 4 * line
    dgebd2(size, size, a, size, values, beside, tau_q, tau_p, work, info)
    dbdsdc(upper, vectors, size, values, beside, u, size, vt, size, work, iwork, work, iwork, info)
    if integers[3] == 0:
        dorm2r(left, plain, size, size, size, a, size, tau_q, u, size, work, info)
        dorml2(right, plain, size, less, less, a + line, size, tau_p, vt + line, size, work, info)


@numba.njit(cache=True)
def _multiply(n: int, room: FloatArray, integers: IntArray, out: FloatArray) -> None:
    """Return vt' u' of the singular values that count, in Fortran's order."""
    size, u = integers.ctypes.data, room.ctypes.data + _DOUBLE * n * n
    one = _FACTORS.ctypes.data
    transposed = _LETTERS.ctypes.data + 6
    counted, vt, zero = size + 2 * _INTEGER, u + _DOUBLE * n * n, one + _DOUBLE
    dgemm(transposed, transposed, size, size, counted, one, vt, size, u, size, zero, out.ctypes.data, size)


@functools.cache
def same_bits() -> bool:
    """Return True if the split `pseudo_inverse` equals `np.linalg.pinv`, on matrices like the controller's."""
    random = np.random.default_rng(0)
    for number in range(40):
        half = random.normal(size=(3 + 3 * (number % 2), 7)) * 10.0 ** random.uniform(-3, 3, size=7)
        matrix = half @ half.T
        if not np.array_equal(pseudo_inverse(matrix, True), pseudo_inverse(matrix, False)):
            return False
    return True
