"""MuJoCo's constraint solver without what it computes again.

A substep solves the same constraints three times (stepper.py). MuJoCo then computes and factors a matrix that is nearly
always the one before, and makes a third of its products with the Jacobian again. While a substep solves, its calls of
five functions come here: one with the inputs of an earlier call gets the answer of that, and any other is computed
without the zeros (skyline.py). Calls of a sixth say when the Jacobian changes. So every bit stays.

Other threads, and whatever else this thread computes, reach MuJoCo's functions as usual. So does everything on another
version of MuJoCo, and where the calls inside a library cannot be redirected.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
import mujoco
import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from wpray.benchmarks.libero import skyline
from wpray.benchmarks.libero.native import mujoco_address
from wpray.system.library_calls import LibraryCalls

_VERSION = "3.3.2"  # in which mj_makeConstraint alone changes the Jacobian
_ROWS, _COLUMNS = 1000, 60  # most constraints and degrees of freedom of what is kept
_KEPT = 16  # products of a substep; there are rarely more

# Places in one block of memory: words, then arrays of float64.
_THREAD, _JACOBIAN, _SPANS, _PRODUCTS, _TRANSPOSED, _SQUARED, _FACTORED, _RANK, _LEAST, _DENSE, _WORDS = range(11)
_PRODUCT_OF = _WORDS  # (_KEPT, _ROWS) vectors, of which only the first columns are used
_PRODUCT_IS = _PRODUCT_OF + _KEPT * _ROWS  # (_KEPT, _ROWS) their products
_TRANSPOSED_OF = _PRODUCT_IS + _KEPT * _ROWS  # and the same of the transposed matrix
_TRANSPOSED_IS = _TRANSPOSED_OF + _KEPT * _ROWS
_SQUARED_OF = _TRANSPOSED_IS + _KEPT * _ROWS  # (_ROWS,) diagonal
_SQUARED_IS = _SQUARED_OF + _ROWS  # (_COLUMNS, _COLUMNS), as the next two
_FACTOR_OF = _SQUARED_IS + _COLUMNS * _COLUMNS
_FACTOR_IS = _FACTOR_OF + _COLUMNS * _COLUMNS
_BEGINS = _FACTOR_IS + _COLUMNS * _COLUMNS  # (_ROWS,) spans of the Jacobian's rows
_ENDS = _BEGINS + _ROWS
_INDICES = _ENDS + _ROWS  # (_COLUMNS,) memory to use, as the next one
_VECTOR = _INDICES + _COLUMNS
_memory = np.zeros(_VECTOR + _COLUMNS)
_free = threading.Lock()  # the memory holds the substeps of one thread
_engines: list[Any] = []  # of code that must stay
_offsets: list[int] = []  # of the pointer to the Jacobian in MuJoCo's data, once it is known


def _memory_function() -> int:
    """Return the address of a function that returns that of the memory, which cached code must not contain."""
    llvmlite.binding.initialize_native_target()
    llvmlite.binding.initialize_native_asmprinter()
    code = f"define i64 @memory() {{ ret i64 {_memory.ctypes.data} }}"
    machine = llvmlite.binding.Target.from_default_triple().create_target_machine()
    engine = llvmlite.binding.create_mcjit_compiler(llvmlite.binding.parse_assembly(code), machine)
    engine.finalize_object()
    _engines.append(engine)
    address: int = engine.get_function_address("memory")
    return address


def _external(name: str, signature: Any, address: int | None = None) -> Any:
    """Return a function for compiled code: one of the C library's, or what is at an address."""
    if address is not None:
        llvmlite.binding.add_symbol(name, address)
    return types.ExternalFunction(name, signature)


def _own(name: str, signature: Any) -> Any:
    """Return MuJoCo's own function for compiled code."""
    return _external(f"wpray_own_{name}", signature, mujoco_address(name))


_PRODUCT = types.void(*[types.intp] * 3, *[types.int32] * 2)
_FACTOR = types.int32(types.intp, types.int32, types.float64)
_SOLVE = types.void(*[types.intp] * 3, types.int32)
_MAKE = types.void(types.intp, types.intp)
_own_product, _own_transposed = _own("mju_mulMatVec", _PRODUCT), _own("mju_mulMatTVec", _PRODUCT)
_own_squared, _own_factor = _own("mju_sqrMatTD", _PRODUCT), _own("mju_cholFactor", _FACTOR)
_own_solve, _own_make = _own("mju_cholSolve", _SOLVE), _own("mj_makeConstraint", _MAKE)
_block = _external("wpray_solver_memory", types.intp(), _memory_function())
_this_thread = _external("pthread_self", types.intp())
_C_PRODUCT = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int] * 2)
_C_FACTOR = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_double)
_C_SOLVE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int)
_compare = _external("memcmp", types.int32(*[types.intp] * 3))
_move = _external("memmove", types.intp(*[types.intp] * 3))
_compiled = functools.partial(numba.njit, cache=True)


def _as_pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_as_pointer)


@_compiled()
def _integers(address: int, size: int) -> Any:
    return carray(_pointer(address), size, np.int64)


@_compiled()
def _floats(address: int, size: int) -> Any:
    return carray(_pointer(address), size, np.float64)


@_compiled()
def begin(field: int) -> None:
    """Begin to solve on this thread; at address `field` is that of the constraints' Jacobian, which is new."""
    words = _integers(_block(), _WORDS)
    words[:_DENSE] = 0
    words[_JACOBIAN] = _integers(field, 1)[0]
    words[_THREAD] = _this_thread()


@_compiled()
def end() -> None:
    """End to solve. It also ends by itself when the Jacobian changes."""
    _integers(_block(), _WORDS)[_THREAD] = 0


@_compiled()
def _solves(words: Any) -> bool:
    return bool(words[_THREAD] == _this_thread())


@_compiled()
def _is_jacobian(words: Any, matrix: int, rows: int, columns: int) -> bool:
    return _solves(words) and words[_JACOBIAN] == matrix and 0 < rows <= _ROWS and 0 < columns <= _COLUMNS


@_compiled()
def _spans(block: int, words: Any, matrix: int, rows: int, columns: int) -> tuple[Any, Any]:
    """Return the first column of each row of the Jacobian that is not 0.0, and one past the last."""
    begins, ends = _integers(block + 8 * _BEGINS, _ROWS), _integers(block + 8 * _ENDS, _ROWS)
    if not words[_SPANS]:
        skyline.find_spans(matrix, rows, columns, begins, ends)
        words[_SPANS] = 1
    return begins, ends


@_compiled()
def _equal(first: int, second: int, size: int) -> bool:
    """Return True if float64 at two places have the same bits."""
    return bool(_compare(first, second, 8 * size) == 0)


@_compiled()
def _copy(source: int, target: int, size: int) -> None:
    """Copy float64."""
    _move(target, source, 8 * size)


@_compiled()
def _answered(count: int, kept: int, vector: int, size: int, result: int, length: int) -> bool:
    """Copy the result (length,) of a vector (size,) that is among `count` of those kept; return True if it is."""
    for number in range(count):
        place = kept + 8 * number * _ROWS
        if _equal(vector, place, size):
            _copy(place + 8 * _KEPT * _ROWS, result, length)
            return True
    return False


@_compiled()
def _keep(count: int, kept: int, vector: int, size: int, result: int, length: int) -> int:
    """Keep a vector and its result beside `count` others, if there is room; return how many are kept now."""
    if count == _KEPT:
        return count
    place = kept + 8 * count * _ROWS
    _copy(vector, place, size)
    _copy(result, place + 8 * _KEPT * _ROWS, length)
    return count + 1


def _product(result: int, matrix: int, vector: int, rows: int, columns: int) -> None:
    """Do what mju_mulMatVec does: result (rows,) is a matrix (rows, columns) times a vector (columns,)."""
    block = _block()
    words, kept = _integers(block, _WORDS), block + 8 * _PRODUCT_OF
    if not _is_jacobian(words, matrix, rows, columns):
        _own_product(result, matrix, vector, rows, columns)
    elif not _answered(words[_PRODUCTS], kept, vector, columns, result, rows):
        begins, ends = _spans(block, words, matrix, rows, columns)
        if words[_DENSE] or not skyline.multiply(result, matrix, vector, rows, columns, begins, ends):
            _own_product(result, matrix, vector, rows, columns)
        words[_PRODUCTS] = _keep(words[_PRODUCTS], kept, vector, columns, result, rows)


def _transposed(result: int, matrix: int, vector: int, rows: int, columns: int) -> None:
    """Do what mju_mulMatTVec does: result (columns,) is a transposed matrix (rows, columns) times a vector (rows,)."""
    block = _block()
    words, kept = _integers(block, _WORDS), block + 8 * _TRANSPOSED_OF
    if not _is_jacobian(words, matrix, rows, columns):
        _own_transposed(result, matrix, vector, rows, columns)
    elif not _answered(words[_TRANSPOSED], kept, vector, rows, result, columns):
        begins, ends = _spans(block, words, matrix, rows, columns)
        if words[_DENSE] or not skyline.multiply_transposed(result, matrix, vector, rows, columns, begins, ends):
            _own_transposed(result, matrix, vector, rows, columns)
        words[_TRANSPOSED] = _keep(words[_TRANSPOSED], kept, vector, rows, result, columns)


def _squared(result: int, matrix: int, diagonal: int, rows: int, columns: int) -> None:
    """Do what mju_sqrMatTD does: result (columns, columns) is J' D J of J (rows, columns) and a diagonal D (rows,)."""
    block = _block()
    words = _integers(block, _WORDS)
    if diagonal == 0 or not _is_jacobian(words, matrix, rows, columns):
        _own_squared(result, matrix, diagonal, rows, columns)
        return
    given, answer = block + 8 * _SQUARED_OF, block + 8 * _SQUARED_IS
    if words[_SQUARED] and _equal(diagonal, given, rows):
        _copy(answer, result, columns * columns)
        return
    begins, ends = _spans(block, words, matrix, rows, columns)
    lowest = _integers(block + 8 * _INDICES, _COLUMNS)
    if words[_DENSE] or not skyline.square(result, matrix, diagonal, rows, columns, begins, ends, lowest):
        _own_squared(result, matrix, diagonal, rows, columns)
    _copy(diagonal, given, rows)
    _copy(result, answer, columns * columns)
    words[_SQUARED] = 1


def _factored(matrix: int, size: int, least: float) -> int:
    """Do what mju_cholFactor does: the lower triangle of a matrix (size, size) becomes its factor; return the rank."""
    block = _block()
    words = _integers(block, _WORDS)
    if size < 1 or size > _COLUMNS or not _solves(words):
        return int(_own_factor(matrix, size, least))
    given, answer, lowest = block + 8 * _FACTOR_OF, block + 8 * _FACTOR_IS, _floats(block + 8 * _LEAST, 1)
    if words[_FACTORED] == size and lowest[0] == least and _equal(matrix, given, size * size):
        _copy(answer, matrix, size * size)
        return int(words[_RANK])
    _copy(matrix, given, size * size)
    begins, inverse, rank = _integers(block + 8 * _INDICES, _COLUMNS), _floats(block + 8 * _VECTOR, _COLUMNS), size
    if words[_DENSE] or not skyline.factorize(matrix, size, least, begins, inverse):
        _copy(given, matrix, size * size)
        rank = int(_own_factor(matrix, size, least))
    _copy(matrix, answer, size * size)
    words[_FACTORED], words[_RANK], lowest[0] = size, rank, least
    return rank


def _solved(result: int, factor: int, vector: int, size: int) -> None:
    """Do what mju_cholSolve does: result (size,) is the solution for a vector (size,), which may be the same memory."""
    block = _block()
    words, given = _integers(block, _WORDS), block + 8 * _VECTOR
    if size < 1 or size > _COLUMNS or not _solves(words):
        _own_solve(result, factor, vector, size)
        return
    _copy(vector, given, size)
    if words[_DENSE] or not skyline.solve(result, factor, given, size, _integers(block + 8 * _INDICES, _COLUMNS)):
        _own_solve(result, factor, given, size)


def _made(model: int, data: int) -> None:
    """Do what mj_makeConstraint does, and end to solve.

    Within a substep, MuJoCo makes constraints again only if it resets a simulation whose accelerations are not finite.
    """
    words = _integers(_block(), _WORDS)
    if _solves(words):
        words[_THREAD] = 0
    _own_make(model, data)


@functools.cache
def routines() -> dict[str, Any]:
    """Return what stands for each of MuJoCo's functions, compiled; each has an `address`."""
    kinds = {
        "mju_mulMatVec": (_product, _PRODUCT),
        "mju_mulMatTVec": (_transposed, _PRODUCT),
        "mju_sqrMatTD": (_squared, _PRODUCT),
        "mju_cholFactor": (_factored, _FACTOR),
        "mju_cholSolve": (_solved, _SOLVE),
        "mj_makeConstraint": (_made, _MAKE),
    }
    return {name: numba.cfunc(signature, cache=True)(function) for name, (function, signature) in kinds.items()}


@functools.cache
def usable() -> bool:
    """Return True if MuJoCo's calls come here, which the first call arranges for this process."""
    if mujoco.__version__ != _VERSION:
        return False
    try:
        calls = LibraryCalls(mujoco_address("mj_step"))
        if not all(name in calls for name in routines()):
            return False
        with _free:
            _memory.view(np.int64)[_DENSE] = not _leaves_out_the_same()
        for name, routine in routines().items():
            calls[name] = routine.address
    except OSError:
        return False
    return True


def _leaves_out_the_same() -> bool:
    """Return True if this build of MuJoCo adds in the order of skyline.py, which another processor's may not."""
    rows, columns, random = 12, 11, np.random.default_rng(0)
    jacobian = random.normal(size=(rows, columns))
    for row in range(rows):
        jacobian[row, : row % 5] = jacobian[row, row % 5 + 5 :] = 0.0
    vector = random.uniform(1.0, 2.0, rows)
    matrix = jacobian.T @ jacobian + np.eye(columns)
    field = np.array([jacobian.ctypes.data])
    found = []
    for ours in (True, False):
        if ours:
            begin(field.ctypes.data)
        result = np.zeros((4, columns, columns))
        result[3] = matrix
        calls = {"mju_mulMatVec": result[0], "mju_mulMatTVec": result[1], "mju_sqrMatTD": result[2]}
        for name, target in calls.items():
            _call(name, _C_PRODUCT, ours, target, jacobian, vector, rows, columns)
        _call("mju_cholFactor", _C_FACTOR, ours, result[3], columns, 0.0)
        _call("mju_cholSolve", _C_SOLVE, ours, result[0, 5], result[3], vector, columns)
        end()
        found.append(result.tobytes())
    return found[0] == found[1]


def _call(name: str, kind: Any, ours: bool, *arguments: Any) -> None:
    """Call MuJoCo's function, or what stands for it."""
    address = routines()[name].address if ours else mujoco_address(name)
    kind(address)(*(each.ctypes.data if isinstance(each, np.ndarray) else each for each in arguments))


class Constraints:
    """Constraints of one simulation, for its substeps."""

    def __init__(self, data: mujoco.MjData) -> None:
        self._data, self._field = data, 0  # until there are constraints

    @contextmanager
    def solving(self) -> Iterator[int]:
        """Give the address of MuJoCo's pointer to the Jacobian, for `begin`; 0 if the solver is to run as usual.

        It does while another thread of this process is in here.
        """
        if not self._field and self._data.nefc and usable():
            self._field = _field(self._data)
        if not self._field or not _free.acquire(blocking=False):
            yield 0
            return
        try:
            yield self._field
        finally:
            _memory.view(np.int64)[_THREAD] = 0  # because an error may have come before `end`
            _free.release()


def _field(data: mujoco.MjData) -> int:
    """Return the address of the pointer in MuJoCo's data that leads to the Jacobian, whose rows Python sees."""
    if not _offsets:
        jacobian, place = data.efc_J.ctypes.data, data._address
        while ctypes.c_uint64.from_address(place).value != jacobian:  # it is a field of the data
            place += 8
        _offsets.append(place - data._address)
    return int(data._address) + _offsets[0]
