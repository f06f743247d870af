"""MuJoCo's dense products and Cholesky factors without the zeros outside of each row's span, in compiled code.

A constraint moves few of a scene's degrees of freedom, and these follow each other: in LIBERO a row of the Jacobian
spans 4 to 7 of 43 to 51 columns. MuJoCo multiplies all of them. What is left out here is 0.0, so that a product with it
adds 0.0 or -0.0 to a sum; every other operation has MuJoCo's order. So the bits are the same unless a factor is not
finite, or a sum is zero and its sign is in question: each function then returns False, or gets the sum from MuJoCo.

Arguments are addresses of float64, rows one after the other, and sizes. A span is the columns from the first that is
not 0.0 up to one past the last.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from llvmlite import binding
from numba import types

from wpray.benchmarks.libero.native import mujoco_address
from wpray.benchmarks.libero.vectors import (
    add_scaled_block,
    bit_length,
    block_mask,
    dot_blocks,
    load,
    load_bits,
    lowest_bit,
    store,
)

MOST_COLUMNS = 64  # because a row's columns are the bits of a word
_BYTES = 8  # of a number
_MINUS_ZERO = -(2**63)  # its bits

binding.add_symbol("wpray_own_mju_dot", mujoco_address("mju_dot"))
_own_dot: Any = types.ExternalFunction("wpray_own_mju_dot", types.float64(types.intp, types.intp, types.int32))
# With NumPy's errors, which are none: MuJoCo divides by zero as C does.
_compiled = functools.partial(numba.njit, cache=True, error_model="numpy")
_inlined = functools.partial(numba.njit, cache=True, error_model="numpy", inline="always")


@_inlined()
def _mask(row: int, size: int) -> int:
    """Return a bit for each number (size,), set unless it is 0.0."""
    found, column = 0, 0
    while column + 4 <= size:
        found |= block_mask(row + _BYTES * column) << column
        column += 4
    while column < size:
        if load_bits(row + _BYTES * column) != 0:
            found |= 1 << column
        column += 1
    return found


@_inlined()
def _dot_rest(first: int, second: int, size: int) -> float:
    """Return the dot product of one to three numbers."""
    total = load(first) * load(second)
    if size > 1:
        total += load(first + _BYTES) * load(second + _BYTES)
    if size > 2:
        total += load(first + 2 * _BYTES) * load(second + 2 * _BYTES)
    return float(total)


@_inlined()
def _dot(first: int, second: int, begin: int, size: int) -> float:
    """Return the dot product of vectors (size,) of which one is 0.0 before `begin`."""
    start, whole = begin & ~3, size & ~3
    total = 0.0
    if start < whole:
        total = dot_blocks(first + _BYTES * start, second + _BYTES * start, (whole - start) >> 2)
    if whole < size:
        total += _dot_rest(first + _BYTES * whole, second + _BYTES * whole, size - whole)
    return total


@_inlined()
def _add_scaled(factor: float, source: int, target: int, size: int) -> None:
    """Add `factor` times a vector (size,) to another."""
    done = 0
    while done + 4 <= size:
        add_scaled_block(factor, source + _BYTES * done, target + _BYTES * done)
        done += 4
    while done < size:
        place = target + _BYTES * done
        store(load(place) + load(source + _BYTES * done) * factor, place)
        done += 1


@_inlined()
def _is_finite(vector: int, size: int) -> bool:
    """Return True if every number is finite and none is so large that its square is not."""
    return _dot(vector, vector, 0, size) < math.inf


@_compiled()
def find_spans(matrix: int, rows: int, columns: int, begins: Any, ends: Any) -> None:
    """Fill `begins` and `ends` (rows,) with the spans of a matrix (rows, columns)."""
    for row in range(rows):
        found = _mask(matrix + _BYTES * row * columns, columns)
        begins[row], ends[row] = min(lowest_bit(found), columns), bit_length(found)


@_compiled()
def multiply(result: int, matrix: int, vector: int, rows: int, columns: int, begins: Any, ends: Any) -> bool:
    """Do what mju_mulMatVec does with a matrix of these spans; return False if MuJoCo must."""
    if not _is_finite(vector, columns):
        return False
    whole = columns & ~3
    for row in range(rows):
        place = matrix + _BYTES * row * columns
        start, stop = begins[row] & ~3, min((ends[row] + 3) & ~3, whole)
        total = 0.0
        if start < stop:
            total = dot_blocks(place + _BYTES * start, vector + _BYTES * start, (stop - start) >> 2)
        if ends[row] > whole:
            total += _dot_rest(place + _BYTES * whole, vector + _BYTES * whole, columns - whole)
        if total == 0.0:  # of either sign
            total = _own_dot(place, vector, columns)
        store(total, result + _BYTES * row)
    return True


@_compiled()
def multiply_transposed(result: int, matrix: int, vector: int, rows: int, columns: int, begins: Any, ends: Any) -> bool:
    """Do what mju_mulMatTVec does with a matrix of these spans; return False if MuJoCo must."""
    if not _is_finite(vector, rows):
        return False
    for column in range(columns):
        store(0.0, result + _BYTES * column)
    for row in range(rows):
        factor = load(vector + _BYTES * row)
        if factor != 0.0:
            begin = begins[row]
            place = matrix + _BYTES * (row * columns + begin)
            _add_scaled(factor, place, result + _BYTES * begin, ends[row] - begin)
    return True


@_compiled()
def square(
    result: int, matrix: int, diagonal: int, rows: int, columns: int, begins: Any, ends: Any, lowest: Any
) -> bool:
    """Do what mju_sqrMatTD does with a matrix of these spans; return False if MuJoCo must.

    `lowest` (columns,) is memory to use.
    """
    for place in range(columns * columns):
        store(0.0, result + _BYTES * place)
    for column in range(columns):
        lowest[column] = column
    for row in range(rows):
        weight = load(diagonal + _BYTES * row)
        if weight == 0.0:
            continue
        begin, place = begins[row], matrix + _BYTES * row * columns
        for column in range(begin, ends[row]):
            value = load(place + _BYTES * column)
            if value != 0.0:
                lowest[column] = min(lowest[column], begin)
                target = result + _BYTES * (column * columns + begin)
                _add_scaled(value * weight, place + _BYTES * begin, target, column + 1 - begin)
    return _mirror(result, columns, lowest)


@_inlined()
def _mirror(matrix: int, size: int, begins: Any) -> bool:
    """Copy the lower triangle, which begins there in each row, to the upper one; return True if it is finite."""
    finite = True
    for row in range(size):
        for column in range(begins[row], row):
            store(load(matrix + _BYTES * (row * size + column)), matrix + _BYTES * (column * size + row))
        finite &= math.isfinite(load(matrix + _BYTES * row * (size + 1)))
    return finite


@_compiled()
def factorize(matrix: int, size: int, least: float, begins: Any, inverse: Any) -> bool:
    """Do what mju_cholFactor does with a matrix (size, size) of full rank; return False if MuJoCo must.

    The matrix is then spoilt. A factor's rows have the spans of the matrix's. `begins` and `inverse` (size,) are memory
    to use.
    """
    for row in range(size):
        place = matrix + _BYTES * row * size
        begin = min(lowest_bit(_mask(place, row)), row)
        begins[row] = begin
        for column in range(begin, row):
            value, known = load(place + _BYTES * column), 0.0
            start = max(begin, begins[column])
            if start < column:
                known = _dot(place, matrix + _BYTES * column * size, start, column)
            if known == 0.0 and load_bits(place + _BYTES * column) == _MINUS_ZERO:
                return False
            store((value - known) * inverse[column], place + _BYTES * column)
        left = load(place + _BYTES * row) - _dot(place, place, begin, row)
        if not least <= left < math.inf or left <= 0.0:
            return False
        root = np.sqrt(left)
        store(root, place + _BYTES * row)
        inverse[row] = 1.0 / root
    return True


@_compiled()
def solve(result: int, factor: int, vector: int, size: int, ends: Any) -> bool:
    """Do what mju_cholSolve does with a factor (size, size); return False if MuJoCo must.

    `vector` must be elsewhere than `result`. `ends` (size,) is memory to use.
    """
    surely = True  # no sum that is -0.0 begins, and all are finite
    for row in range(size):
        place, target = factor + _BYTES * row * size, result + _BYTES * row
        begin = min(lowest_bit(_mask(place, row)), row)
        surely &= load_bits(vector + _BYTES * row) != _MINUS_ZERO
        value = load(vector + _BYTES * row) - _dot(place, result, begin, row)
        store(value / load(place + _BYTES * row), target)
        surely &= load_bits(target) != _MINUS_ZERO
        for column in range(begin, row + 1):
            ends[column] = row + 1
    for row in range(size - 1, -1, -1):
        value = load(result + _BYTES * row)
        for below in range(row + 1, ends[row]):
            value -= load(factor + _BYTES * (below * size + row)) * load(result + _BYTES * below)
        value /= load(factor + _BYTES * row * (size + 1))
        store(value, result + _BYTES * row)
        surely &= math.isfinite(value)
    return surely
