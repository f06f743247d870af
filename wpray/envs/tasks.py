"""LIBERO's suites, tasks and initial states, read without creating an environment."""

from __future__ import annotations

import contextlib
import difflib
import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wpray.envs.libero_import import load, package_root, prepare
from wpray.errors import BadInputError
from wpray.types import FloatArray, Task

# Control steps after the wait steps, as the LIBERO literature counts them.
_MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError)


def list_tasks(suite: str, max_steps: int | None = None) -> tuple[Task, ...]:
    """The tasks of `suite` in the benchmark's order.

    Raises BadInputError for a suite that the installed package does not have, or has no known step limit for.
    """
    limit = max_steps or _MAX_STEPS.get(suite)
    benchmark = _benchmark(suite)
    if limit is None:
        raise BadInputError(f"task_suite: {suite} has no known step limit; set env.max_steps (libero_10 has 520)")
    return tuple(
        Task(suite, index, task.name, task.language, _count_states(_states_file(task)), limit)
        for index, task in enumerate(benchmark.tasks)
    )


def bddl_file(suite: str, task_id: int) -> Path:
    """The task's problem definition."""
    task = _benchmark(suite).tasks[task_id]
    return prepare() / "bddl_files" / str(task.problem_folder) / str(task.bddl_file)


def initial_states(suite: str, task_id: int) -> FloatArray:
    """(N, 1 + nq + nv) flattened simulator states: time, qpos, qvel; one row a trial."""
    return _read_states(_states_file(_benchmark(suite).tasks[task_id]))


def _benchmark(suite: str) -> Any:
    known = load("libero.libero.benchmark").get_benchmark_dict()
    if suite not in known:
        near = difflib.get_close_matches(suite, known, n=3, cutoff=0.5) or sorted(known)[:5]
        raise BadInputError(f"task_suite: LIBERO has no suite {suite!r}; did you mean {' or '.join(near)}?")
    with contextlib.redirect_stdout(io.StringIO()):
        return known[suite]()


def _states_file(task: Any) -> Path:
    """The task's initial states: a torch file of the official package, or the NPZ that some packages ship instead."""
    path = package_root() / "init_files" / str(task.problem_folder) / str(task.init_states_file)
    for candidate in (path.with_name(path.name + ".npz"), path):
        if candidate.exists():
            return candidate
    raise BadInputError(f"{path} is missing: the LIBERO package is incomplete; install it again")


def _count_states(path: Path) -> int:
    """Rows of `_read_states`, from the header alone where that is possible: suites have many files."""
    if path.suffix != ".npz":
        return len(_read_states(path))
    with _one_line_errors(path), zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        _check_states(shape, dtype)
        return int(shape[0])


def _read_states(path: Path) -> FloatArray:
    """(N, 1 + nq + nv). Raises BadInputError for anything but a table of numbers; runs no code that a file holds."""
    with _one_line_errors(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                states = archive[archive.files[0]]
        else:
            states = np.asarray(_read_torch(path))
        _check_states(states.shape, states.dtype)
        return np.asarray(states, dtype=np.float64)


def _check_states(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 2 or dtype.kind != "f":
        raise ValueError(f"holds {dtype} of shape {shape}")


def _read_torch(path: Path) -> Any:
    """The official package stores numpy arrays in a torch pickle: only what such an array needs may be unpickled."""
    import torch

    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    floats = [type(np.dtype(kind)) for kind in (np.float64, np.float32)]
    # Files written by numpy 1 name the same function by its older module.
    older = (multiarray._reconstruct, "numpy.core.multiarray._reconstruct")
    allowed = [np.dtype, np.ndarray, multiarray._reconstruct, multiarray.scalar, older, *floats]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
        return torch.load(path, weights_only=True)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turns whatever the readers raise for a file that is not what it should be into a BadInputError."""
    try:
        yield
    except (*_UNREADABLE, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise BadInputError(f"{path}: not a plain array of initial states ({reason}); reinstall LIBERO") from error
