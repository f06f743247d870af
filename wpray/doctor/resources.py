"""Checks of memory, cores, disk and the output folder against the configuration."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from wpray.checks import CheckResult
from wpray.config import Config
from wpray.config.value_types import Auto
from wpray.results.mirrored import staging_path
from wpray.results.videos import VideoFolder
from wpray.storage.store import Store
from wpray.storage.url import StoreUrl, location_of
from wpray.system.hardware import cores, free_memory

_GIB = 2**30
# Bytes per control step, and of an episode's rows: measured on libero_object and libero_10, plus a half.
_STEP_BYTES = {"full": 1500, "light": 300, "none": 0}
_ROW_BYTES = 40_000
_VIDEO_BYTES = 1_000_000


def check_memory(config: Config) -> list[CheckResult]:
    """Compare free memory with the need of the configured environments."""
    free = free_memory()
    if free is None or config.ray.address is not None:
        return []
    needed = config.env_memory
    if config.load_benchmark().stand_in:
        return _memory_of_many(free, needed, config.num_env_actors)
    each, wanted = needed / _GIB, config.num_env_actors
    text = f"{free / _GIB:.1f} GiB of memory are free, one environment needs {each:g} GiB"
    if free < needed:
        return [CheckResult("memory", "fail", text, "close something or lower env.memory_gb")]
    fitting = int(free / needed)
    if wanted != "auto" and wanted > fitting:
        remedy = f"set ray.num_env_actors (num_parallel) to {fitting}"
        return [CheckResult("memory", "warn", f"{text}: room for {fitting}, {wanted} are asked for", remedy)]
    return [CheckResult("memory", "pass", f"{text}: room for {fitting}, on {cores()} cores")]


def _memory_of_many(free: int, needed: int, wanted: int | Auto) -> list[CheckResult]:
    """Warn if fewer environments fit than are configured; Ray then starts those that fit."""
    fitting = int(free / needed)
    if wanted == "auto" or wanted <= fitting:
        return []
    text = f"{free / _GIB:.1f} GiB of memory are free: room for {fitting} environments, {wanted} are asked for"
    return [CheckResult("memory", "warn", text, f"set ray.num_env_actors (num_parallel) to {fitting}")]


def check_cores(config: Config) -> list[CheckResult]:
    """Check that one environment at least gets a core, because Ray would wait forever."""
    if config.ray.address is None and config.num_env_actors == "auto" and config.ray.env_cpus > cores():
        text = f"ray.env_cpus: {config.ray.env_cpus:g} CPUs asked for each env actor, this machine has {cores()}"
        return [CheckResult("cores", "fail", text, "lower it, or give ray.num_env_actors")]
    return []


def check_output(config: Config) -> list[CheckResult]:
    """Check that the result folder and its store can be written."""
    found = [result for path in _outputs(config) for result in _check_writable(path)]
    store = None if config.output_dir is None else location_of(config.output_dir)
    if isinstance(store, StoreUrl):
        Store.connect(store).check()
        found.append(CheckResult("output", "pass", f"{store} can be written"))
    return found


def check_disk(config: Config) -> list[CheckResult]:
    """Compare free disk space with a high estimate of what the run records."""
    sizes = {suite: config.load_benchmark().size(suite) for suite in config.suites}
    tasks = {suite: len(config.tasks_of(suite) or range(size.tasks)) for suite, size in sizes.items()}
    each = {
        suite: config.num_steps_wait + (config.max_steps_of(suite) or size.max_steps) for suite, size in sizes.items()
    }
    steps = sum(tasks[suite] * each[suite] for suite in config.suites) * config.num_trials_per_task
    episodes = config.num_trials_per_task * sum(tasks.values())
    needed = episodes * _ROW_BYTES + steps * _STEP_BYTES[config.record]
    if config.video.mode != "none":
        needed += min(episodes, config.video.max_count) * _VIDEO_BYTES
    free = shutil.disk_usage(_existing(_outputs(config)[0])).free
    text = f"{_size(free)} free, at most {_size(needed)} for {episodes} episodes (record {config.record})"
    if free > needed:
        return [CheckResult("disk", "pass", text)]
    return [CheckResult("disk", "fail", text, "set record: light, or output_dir on a larger disk")]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes > _GIB else f"{num_bytes / 2**20:.0f} MiB"


def _outputs(config: Config) -> list[Path]:
    output = location_of(config.output_dir or "runs")
    here = output if isinstance(output, Path) else staging_path(output)
    videos = [VideoFolder.of(here, config.video_out_path).path] if config.video_out_path else []
    return [here.absolute(), *videos]


def _check_writable(path: Path) -> list[CheckResult]:
    place = _existing(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            return [CheckResult("output", "pass", f"{path} can be written")]
    except OSError as error:
        remedy = "choose another output_dir or video_out_path"
        return [CheckResult("output", "fail", f"cannot write to {place} ({error.strerror})", remedy)]


def _existing(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
