"""`init_states_file`: initial states that replace the suite's own, as a dict of task name -> array (n, state dim).

Such a file is a pickle, plain or torch's: only what an array needs may be unpickled, so nothing of it is ever run. NPZ
files, with an array a task, need no such care.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from wpray.errors import BadInputError, shown
from wpray.types import FloatArray, Task

SETTING = "init_states_file"
_MAX_BYTES = 1_000_000_000
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first number of torch's older format
_FAILURES = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError, ImportError)
_ARRAYS = {
    *((module, name) for module in ("numpy", "numpy._core.multiarray") for name in ("ndarray", "dtype")),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")  # of numpy 1 and 2
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # protocol 2 stores bytes with it
}


def read_init_states(path: Path) -> dict[str, FloatArray]:
    """Return the states (n, state dim) float64 of each task in a file.

    Raises BadInputError if it cannot be read, holds anything but tables of finite numbers, or more than numbers.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("larger than 1 GB")
        found = _read(path)
        if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
            raise ValueError(f"holds {type(found).__name__}, not arrays by task name")
        return {name: _checked(name, states) for name, states in found.items()}
    except (*_FAILURES, MemoryError, RecursionError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise BadInputError(
            f"{SETTING}: {path}: no initial states by task name ({reason}); "
            "give an NPZ, or a pickle or torch file of a dict of arrays"
        ) from error


def states_of(task: Task, states: Mapping[str, FloatArray], path: Path) -> FloatArray:
    """Return the states of `task` among those of the file `path`. Raises BadInputError if it has none."""
    if task.name not in states:
        found = ", ".join(map(shown, list(states)[:3]))
        raise BadInputError(
            f"init_states_file: {path} has no states of task {task.task_id} ({task.name}), only of {found}"
            f"{' and others' if len(states) > 3 else ''}; add them, or leave the task out with tasks"
        )
    return states[task.name]


def _read(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_npz = all(name.endswith(".npy") for name in archive.namelist())
        if not is_npz:
            return read_torch(path)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    with path.open("rb") as file:
        first = _ArraysOnly(file).load()
        return read_torch(path) if first == _TORCH_MAGIC else first


def read_zipped_arrays(path: Path) -> FloatArray:
    """Return the array in a file of torch's present format, without torch.

    Raises BadInputError if it cannot be read or holds anything but an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = _ArraysOnly(io.BytesIO(archive.read(name))).load()
        if not isinstance(found, np.ndarray):
            raise ValueError(f"holds {type(found).__name__}")
    except (*_FAILURES, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise BadInputError(f"{path}: no array of initial states ({reason}); install the package again") from error
    return found


def _checked(name: str, states: Any) -> FloatArray:
    table = np.asarray(states, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{shown(name)} has shape {table.shape}, not (states, numbers of a state)")
    if not np.isfinite(table).all():
        raise ValueError(f"{shown(name)} holds a number that is not finite")
    return table


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of containers, numbers, texts and numpy arrays; refuses everything else before it is made."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return the function or class, if arrays need it. Raises UnpicklingError for any other name."""
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return OrderedDict if name == "OrderedDict" else super().find_class(module, name)


def read_torch(path: Path) -> Any:
    """Read numpy arrays that a torch pickle holds; unpickle only what such an array needs."""
    import torch

    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    floats = [type(np.dtype(kind)) for kind in (np.float64, np.float32)]
    # Files written by numpy 1 name the same function by its older module.
    older = (multiarray._reconstruct, "numpy.core.multiarray._reconstruct")
    allowed = [np.dtype, np.ndarray, multiarray._reconstruct, multiarray.scalar, older, *floats]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
        return torch.load(path, weights_only=True)
