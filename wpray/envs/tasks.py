"""LIBERO's suites, tasks and initial states, read without creating an environment."""

from __future__ import annotations

import contextlib
import difflib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from wpray.envs.libero_import import load, package_root, prepare
from wpray.errors import BadInputError
from wpray.types import FloatArray, Task

# Control steps after the wait steps, as the LIBERO literature counts them.
_MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}


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
    if path.suffix != ".npz":
        return len(_read_states(path))
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
        np.lib.format.read_magic(member)
        shape, _, _ = np.lib.format.read_array_header_1_0(member)
    return int(shape[0])


def _read_states(path: Path) -> FloatArray:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[archive.files[0]], dtype=np.float64)
    return _read_torch_states(path)


def _read_torch_states(path: Path) -> FloatArray:
    """The official package stores numpy arrays in a torch pickle: only what such an array needs may be unpickled."""
    import pickle

    import torch

    scalar = [np.dtype, type(np.dtype(np.float64)), np.ndarray]
    allowed = [*scalar, np._core.multiarray._reconstruct, np._core.multiarray.scalar]  # type: ignore[attr-defined]
    # Files written by numpy 1 name the same function by its older module.
    older = [(np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct")]  # type: ignore[attr-defined]
    try:
        with torch.serialization.safe_globals([*allowed, *older]):
            states = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(f"{path}: not a plain array of initial states ({reason}); reinstall LIBERO") from error
    return np.asarray(states, dtype=np.float64)
