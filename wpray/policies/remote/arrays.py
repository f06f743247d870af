"""Arrays in msgpack and JSON, as each server family writes them; what arrives is checked and never executed.

Every function here raises MalformedError for bytes that are not what the protocol says.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from wpray.errors import wrapping_errors

Array = NDArray[Any]
_NUMBERS = "biuf"  # dtype kinds that travel: no objects, because those need pickle
_MOST_DIMENSIONS = 8
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class MalformedError(ValueError):
    """Bytes that the protocol does not allow."""


def pack(value: Any) -> bytes:
    """Return `value` as openpi's servers and clients write it, to the byte."""
    packed: bytes = msgpack.packb(value, default=_openpi_form)
    return packed


def unpack(data: bytes) -> Any:
    """Return what openpi's `pack` was given."""
    return _decoded(data, _openpi_value)


def pack_str_keys(value: Any) -> bytes:
    """Return `value` as vla-eval writes it with raw images, to the byte."""
    packed: bytes = msgpack.packb(value, default=_str_keys_form, use_bin_type=True)
    return packed


def unpack_str_keys(data: bytes) -> Any:
    """Return what a vla-eval server wrote; images in their own encoding are not part of what it sends back."""
    return _decoded(data, _str_keys_value)


def pack_npy(value: Any) -> bytes:
    """Return `value` as GR00T's client writes it: each array as the bytes of numpy.save."""
    packed: bytes = msgpack.packb(value, default=_npy_form)
    return packed


def unpack_npy(data: bytes) -> Any:
    """Return what a GR00T server wrote."""
    return _decoded(data, _npy_value)


def pack_json(value: Any) -> bytes:
    """Return `value` as json_numpy writes it, to the byte."""
    return json.dumps(value, default=_json_form).encode()


def unpack_json(data: bytes) -> Any:
    """Return what json_numpy's `dumps` was given; a text that holds such JSON is read, too."""
    found = _parsed(f"JSON of {len(data)} bytes", lambda: json.loads(data, object_hook=_json_value))
    if isinstance(found, str) and found[:1] in ("[", "{"):
        return _parsed(f"JSON of {len(data)} bytes", lambda: json.loads(found, object_hook=_json_value))
    return found


def _decoded(data: bytes, hook: Callable[[Mapping[Any, Any]], Any]) -> Any:
    return _parsed(f"msgpack of {len(data)} bytes", lambda: msgpack.unpackb(data, object_hook=hook))


def _parsed(kind: str, parse: Callable[[], Any]) -> Any:
    def malformed(error: Exception) -> MalformedError:  # the parsers of msgpack and numpy raise many kinds
        text = " ".join(str(error).split()) or type(error).__name__
        return MalformedError(f"no valid {kind} ({text[:200]})")

    with wrapping_errors(malformed):
        return parse()


def _json_form(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{type(value).__name__} does not travel")
    data = base64.b64encode(value.tobytes()).decode("ascii")
    return {"__numpy__": data, "dtype": _travels(value.dtype).str, "shape": value.shape}


def _json_value(found: Mapping[str, Any]) -> Any:
    if "__numpy__" not in found:
        return found
    return _array(base64.b64decode(found["__numpy__"], validate=True), found["dtype"], found["shape"])


def _openpi_form(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        kind = {b"data": value.tobytes(), b"dtype": _travels(value.dtype).str, b"shape": value.shape}
        return {b"__ndarray__": True, **kind}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": _travels(value.dtype).str}
    return value


def _openpi_value(found: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return _array(found[b"data"], found[b"dtype"], found[b"shape"])
    if b"__npgeneric__" in found:
        return _scalar(found[b"data"], found[b"dtype"])
    return found


def _str_keys_form(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        kind = {"data": value.tobytes(), "dtype": _travels(value.dtype).str, "shape": list(value.shape)}
        return {"__ndarray__": True, **kind}
    return value.item() if isinstance(value, np.generic) else value


def _str_keys_value(found: Mapping[Any, Any]) -> Any:
    return _array(found["data"], found["dtype"], found["shape"]) if "__ndarray__" in found else found


def _npy_form(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _travels(value.dtype)
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}
    return value.item() if isinstance(value, np.generic) else value


def _npy_value(found: Mapping[Any, Any]) -> Any:
    if "__ndarray_class__" not in found:
        return found
    file = io.BytesIO(found["as_npy"])
    version = np.lib.format.read_magic(file)
    if version not in _NPY_HEADERS:
        raise MalformedError(f"an array of numpy's format {version}")
    shape, column_major, dtype = _NPY_HEADERS[version](file)
    array = _array(file.read(), dtype.str, list(shape)[:: -1 if column_major else 1])
    return array.T if column_major else array


def _array(data: Any, dtype: Any, shape: Any) -> Array:
    """Return an array with memory of its own. Raise MalformedError if its parts do not fit together."""
    kind = _dtype(dtype)
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(_is_size(size) for size in shape):
        raise MalformedError(f"an array of the shape {shape!r:.80}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
        raise MalformedError(f"an array of the shape {shape} and type {kind} in {len(data):,} bytes")
    return np.frombuffer(data, kind).reshape(shape).copy()


def _scalar(data: Any, dtype: Any) -> Any:
    if not isinstance(data, int | float):
        raise MalformedError(f"a number that is {data!r:.80}")
    return _dtype(dtype).type(data)


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str):
        raise MalformedError(f"an array of the type {name!r:.80}")
    return _travels(np.dtype(name))


def _travels(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in _NUMBERS:
        raise MalformedError(f"arrays of the type {dtype} do not travel; numbers and booleans do")
    return dtype
