"""Float64 at addresses, for compiled code: loads, stores, and four at a time what MuJoCo adds four at a time.

An address is an integer; numbers lie 8 bytes apart. Nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FLOAT, _WORD, _INDEX, _NIBBLE, _BIT = ir.DoubleType(), ir.IntType(64), ir.IntType(32), ir.IntType(4), ir.IntType(1)
_FLOATS, _WORDS = ir.VectorType(_FLOAT, 4), ir.VectorType(_WORD, 4)
_BYTES = 8  # of a number, to which every address is a multiple
_BLOCK_SHIFT = 5  # a block of four has 2^5 bytes

_variable: Any = cgutils.alloca_once_value

Build = Callable[..., Any]  # from a builder and values of LLVM's


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = _BYTES
    return value


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = _BYTES


def _four(builder: Any, value: Any) -> Any:
    vector = ir.Constant(_FLOATS, ir.Undefined)
    for lane in range(4):
        vector = builder.insert_element(vector, value, ir.Constant(_INDEX, lane))
    return vector


def _signed(build: Build, signature: Any) -> tuple[Any, Any]:
    """Return what numba wants of an intrinsic: its signature, and how its code is made."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = build(builder, *arguments)
        return context.get_dummy_value() if value is None else value

    return signature, generate


def _load_float(context: Any, address: Any) -> Any:
    """Return the number at an address."""
    return _signed(lambda builder, place: _load(builder, place, _FLOAT), types.float64(types.intp))


def _load_bits(context: Any, address: Any) -> Any:
    """Return the bits of the number at an address as an int64."""
    return _signed(lambda builder, place: _load(builder, place, _WORD), types.int64(types.intp))


def _store_float(context: Any, value: Any, address: Any) -> Any:
    """Store a number at an address."""
    return _signed(_store, types.void(types.float64, types.intp))


def _dot_blocks(context: Any, first: Any, second: Any, count: Any) -> Any:
    """Return the sum of the products of `count` blocks of four, in MuJoCo's order: lane by lane, then of the lanes."""

    def build(builder: Any, first: Any, second: Any, count: Any) -> Any:
        total = _variable(builder, ir.Constant(_FLOATS, [0.0] * 4))
        with cgutils.for_range(builder, count, intp=_WORD) as loop:
            offset = builder.shl(loop.index, ir.Constant(_WORD, _BLOCK_SHIFT))
            factors = (_load(builder, builder.add(place, offset), _FLOATS) for place in (first, second))
            builder.store(builder.fadd(builder.load(total), builder.fmul(*factors)), total)
        lanes = [builder.extract_element(builder.load(total), ir.Constant(_INDEX, lane)) for lane in range(4)]
        return builder.fadd(builder.fadd(lanes[0], lanes[2]), builder.fadd(lanes[1], lanes[3]))

    return _signed(build, types.float64(*[types.intp] * 3))


def _add_scaled_block(context: Any, factor: Any, source: Any, target: Any) -> Any:
    """Add `factor` times a block of four at `source` to that at `target`."""

    def build(builder: Any, factor: Any, source: Any, target: Any) -> None:
        product = builder.fmul(_load(builder, source, _FLOATS), _four(builder, factor))
        _store(builder, builder.fadd(_load(builder, target, _FLOATS), product), target)

    return _signed(build, types.void(types.float64, types.intp, types.intp))


def _block_mask(context: Any, address: Any) -> Any:
    """Return a bit for each number of a block of four, the first one lowest: 0 for 0.0, 1 for any other, also -0.0."""

    def build(builder: Any, address: Any) -> Any:
        other = builder.icmp_unsigned("!=", _load(builder, address, _WORDS), ir.Constant(_WORDS, [0] * 4))
        return builder.zext(builder.bitcast(other, _NIBBLE), _WORD)

    return _signed(build, types.int64(types.intp))


def _lowest_bit(context: Any, word: Any) -> Any:
    """Return the number of the lowest bit that is set, 64 if none is."""
    return _signed(lambda builder, word: builder.cttz(word, ir.Constant(_BIT, 0)), types.int64(types.int64))


def _bit_length(context: Any, word: Any) -> Any:
    """Return the number of bits up to the highest one that is set."""

    def build(builder: Any, word: Any) -> Any:
        return builder.sub(ir.Constant(_WORD, 64), builder.ctlz(word, ir.Constant(_BIT, 0)))

    return _signed(build, types.int64(types.int64))


load: Any = intrinsic(_load_float)
load_bits: Any = intrinsic(_load_bits)
store: Any = intrinsic(_store_float)
dot_blocks: Any = intrinsic(_dot_blocks)
add_scaled_block: Any = intrinsic(_add_scaled_block)
block_mask: Any = intrinsic(_block_mask)
lowest_bit: Any = intrinsic(_lowest_bit)
bit_length: Any = intrinsic(_bit_length)
