"""Checks that run the simulator: rendering, LIBERO's import, MuJoCo's behaviour, whole trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import wpray
from wpray.benchmarks.factory import FAKE_SUITE
from wpray.benchmarks.libero import tasks
from wpray.benchmarks.libero.init_states_file import read_init_states, states_of
from wpray.config import Config
from wpray.doctor.result import Result, Status
from wpray.system import gl
from wpray.trials import select_tasks
from wpray.types import Task

_TIMEOUT_S = 300
_MUJOCO = "run: pip install mujoco==3.3.2"
_OSMESA = "as root: apt-get install -y libosmesa6 libgl1 libglib2.0-0"
# Values of MuJoCo 3.3.2. From 3.4 on, the bowl slides further; versions after 3.3.2 render libero_object darker.
_SLIDE_CM, _SLIDE_TOLERANCE = 1.46, 0.3
_BRIGHTNESS, _BRIGHTNESS_TOLERANCE = 139.5, 8.0
# Meanings of a failed probe's output: (words, meaning, remedy).
_KNOWN = (
    ("glGetError", "PyOpenGL found no libOSMesa", _OSMESA),
    ("OSMesa", "libOSMesa cannot be loaded", _OSMESA),
    ("libGL.so.1", "opencv, which robosuite imports, finds no libGL.so.1", "as root: apt-get install -y libgl1"),
    ("libgthread", "opencv, which robosuite imports, finds no glib", "as root: apt-get install -y libglib2.0-0"),
    (
        "no locator available",
        "numba finds no folder for its cache",
        "set NUMBA_CACHE_DIR to a folder that can be written",
    ),
    ("EGL", "EGL gives no context", "env.renderer: osmesa; in a container: NVIDIA_DRIVER_CAPABILITIES=all"),
    ("mj_fullM", "this MuJoCo's functions are not those that robosuite 1.4.0 calls", _MUJOCO),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Values that a probe printed, or the error that stopped it."""

    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    remedy: str = ""


def run_probe(name: str, *arguments: str, environ: dict[str, str] | None = None) -> Finding:
    """Run a probe without a terminal."""
    package = str(Path(wpray.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "wpray.doctor.probe", name, *arguments]
    surroundings = {**(os.environ if environ is None else environ), "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, env=surroundings
        )
    except subprocess.TimeoutExpired:
        return Finding(error=f"no answer within {_TIMEOUT_S} s")
    if done.returncode == 0:
        return Finding(json.loads(done.stdout.splitlines()[-1]))
    return _explain(done.returncode, done.stderr)


def check_rendering(config: Config) -> list[Result]:
    """Render a frame and report the renderer."""
    if FAKE_SUITE in config.suites:
        return []
    renderer = gl.resolve(config.env.renderer)
    found = run_probe("render", renderer)
    if found.error:
        return [Result("rendering", "fail", f"{renderer}: {found.error}", found.remedy)]
    values = found.values
    if values["red"] < values["blue"] + 5:
        return [Result("rendering", "fail", f"{renderer}: the frame is not what was drawn", "env.renderer: osmesa")]
    where = f"{renderer} on {values['renderer']}"
    text = f"{where}: a frame in {1000 * values['seconds']:.0f} ms"
    if renderer == "osmesa":
        return [Result("rendering", "pass", text)]
    if "llvmpipe" in where or "softpipe" in where:
        remedy = "mount the GPU's driver files, or env.renderer: osmesa"
        return [Result("rendering", "warn", f"{text}, which is no GPU", remedy)]
    return [Result("rendering", "pass", f"{text}; EGL device {values['device'] or 'as it comes'}")]


def check_libero_import(config: Config) -> list[Result]:
    """Import LIBERO with a fresh home and no terminal, because the official package asks a question there."""
    if FAKE_SUITE in config.suites:
        return []
    with tempfile.TemporaryDirectory() as home:
        environ = {name: value for name, value in os.environ.items() if name != "LIBERO_CONFIG_PATH"}
        found = run_probe("libero", environ={**environ, "HOME": home})
    if found.error:
        return [Result("LIBERO import", "fail", found.error, found.remedy)]
    return [Result("LIBERO import", "pass", "without a question, without a terminal")]


def check_suite(config: Config) -> list[Result]:
    """Check the suite's tasks, their problem files and their initial states."""
    if FAKE_SUITE in config.suites:
        return []
    return [_check_suite(config, suite) for suite in config.suites]


def _check_suite(config: Config, suite: str) -> Result:
    listed = tasks.list_tasks(suite, config.env.max_steps, config.instruction_of(suite))
    known = select_tasks(listed, config.task_ids(suite, (task.task_id for task in listed)))
    for task in known:
        states = tasks.initial_states(task.suite, task.task_id)
        file = tasks.bddl_file(task.suite, task.task_id)
        if not file.is_file() or not np.isfinite(states).all():
            what = f"task {task.task_id}: {file} is missing" if not file.is_file() else f"task {task.task_id}: NaN"
            return Result("suite", "fail", f"{task.suite} {what}", "install LIBERO again")
    if config.init_states_file is not None:
        return _check_own_states(Path(config.init_states_file), known)
    fewest = min(task.num_trials for task in known)
    text = f"{suite}: {len(known)} tasks, at least {fewest} initial states each"
    if config.num_trials_per_task > fewest:
        return Result("suite", "fail", text, f"num_trials_per_task: use at most {fewest}")
    return Result("suite", "pass", f"{text}, all readable")


def _check_own_states(path: Path, known: Sequence[Task]) -> Result:
    """Compare the states of init_states_file with the scenes'. Raises BadInputError as its reader does."""
    states = read_init_states(path)
    fewest = min(len(states_of(task, states, path)) for task in known)
    for task in known:
        theirs, ours = states[task.name].shape[1], tasks.initial_states(task.suite, task.task_id).shape[1]
        if theirs != ours:
            said = f"init_states_file: a state of {task.name} has {theirs} numbers, its scene {ours}"
            return Result("suite", "fail", said, "make the states from this suite's scenes")
    return Result("suite", "pass", f"{path}: states of {len(known)} tasks, at least {fewest} each")


def check_mujoco(config: Config) -> list[Result]:
    """Compare MuJoCo's physics and pixels with those of 3.3.2, because a version may be wrong."""
    if FAKE_SUITE in config.suites:
        return []
    found = run_probe("simulator")
    if found.error:
        return [Result("MuJoCo", "fail", found.error, found.remedy or _MUJOCO)]
    slide, brightness = found.values["slide_cm"], found.values["brightness"]
    version = found.values["mujoco"]
    moves = f"{version}: the bowl of libero_spatial task 5 settles {slide:.1f} cm away ({_SLIDE_CM:.1f} with 3.3.2)"
    shines = f"{version}: libero_object has mean level {brightness:.1f} ({_BRIGHTNESS:.1f} with 3.3.2)"
    return [
        _near("MuJoCo physics", moves, abs(slide - _SLIDE_CM) < _SLIDE_TOLERANCE),
        _near("MuJoCo pixels", shines, abs(brightness - _BRIGHTNESS) < _BRIGHTNESS_TOLERANCE),
    ]


def check_trials(config: Config) -> list[Result]:
    """Run two trials of the scripted policy on libero_object, which must succeed."""
    found = run_probe("trials")
    if found.error:
        return [Result("trials", "fail", found.error, found.remedy)]
    steps = found.values["steps"]
    if None in steps:
        return [Result("trials", "fail", f"the scripted policy solved {len(steps) - steps.count(None)} of 2", _MUJOCO)]
    return [Result("trials", "pass", f"the scripted policy solved 2 of 2 (in {steps[0]} and {steps[1]} steps)")]


def _near(name: str, text: str, good: bool) -> Result:
    status: Status = "pass" if good else "fail"
    return Result(name, status, text, "" if good else f"not comparable with other results; {_MUJOCO}")


def _explain(code: int, stderr: str) -> Finding:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message")
    if code < 0:
        last = f"died of {signal.Signals(-code).name}"
    for words, meaning, remedy in _KNOWN:
        if words in stderr:
            return Finding(error=f"{meaning} ({last[:200]})", remedy=remedy)
    return Finding(error=last[:300])
