"""Rendering of selected episodes into a run's video folder, with a progress bar."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from datetime import datetime

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wpray.cluster.setup import num_renderers, running_ray
from wpray.config import Config
from wpray.errors import BadInputError, RunStoppedError
from wpray.results.atomic import write_atomic
from wpray.results.merge import merge
from wpray.results.reader import Run, load
from wpray.results.sessions import sessions
from wpray.results.videos import VideoFolder, video_name
from wpray.results.writer import RunFolder
from wpray.types import EpisodeRow, Task, TrialKey
from wpray.video.frames import VideoJob, VideoStyle, check_recording
from wpray.video.pool import VideoPool
from wpray.video.selection import select_episodes

_LOG = logging.getLogger(__name__)
_LEAST_S = 20.0  # for the videos of a sample, also after a short evaluation


def after_run(config: Config, folder: RunFolder, console: Console) -> None:
    """Render the missing videos that `video.*` selects, after the last episode, when the cores are free.

    Log what cannot be rendered instead of raising, because the results are complete without videos. Ctrl-C skips the
    rest.
    """
    videos = VideoFolder.of(folder.path, config.video_out_path, len(config.suites) > 1)
    if config.video.mode != "none" and folder.has_rows():
        try:
            _render_missing(config, folder, videos, console)
        except KeyboardInterrupt:
            _LOG.warning("videos skipped; python -m wpray.video %s renders them later", folder.path)
        except (BadInputError, RunStoppedError, OSError, ray.exceptions.RayError) as error:
            _LOG.warning("no videos: %s", str(error).strip().splitlines()[0])
    merge(folder, videos)


def render(
    config: Config,
    jobs: Sequence[VideoJob],
    style: VideoStyle,
    videos: VideoFolder,
    console: Console,
    budget_s: float = math.inf,
) -> int:
    """Write the jobs' videos. Return the number of those that could not be rendered, each with a warning.

    Jobs that would exceed `budget_s` are left out. Raise OSError if the folder cannot be written.
    """
    videos.path.mkdir(parents=True, exist_ok=True)
    failed, written, began = 0, 0, time.monotonic()
    with _ray(config), _progress(console) as progress:
        bar = progress.add_task("videos", total=len(jobs))
        size = num_renderers(config, len(jobs))
        for result in VideoPool(config, style, size, budget_s).render(jobs):
            progress.advance(bar)
            if result.video is None:
                failed += 1
                _LOG.warning("no video %s: %s", result.job.name, result.reason)
            else:
                path = videos.path / result.job.name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, result.video)
                written += 1
    seconds = time.monotonic() - began
    summary = f"Videos: {written} in {videos.path} ({seconds:.0f} s)"
    left_out = len(jobs) - written - failed
    if left_out:
        summary += f"; {left_out} left out to save time (video.max_s): python -m wpray.video RUN renders them"
    console.print(summary, highlight=False, markup=False, soft_wrap=True)
    return failed


def jobs_for(run: Run, rows: Sequence[EpisodeRow]) -> list[VideoJob]:
    """Return a rendering job for each episode. Raise BadInputError if one has no trajectory."""
    segments = _segments(run)
    by_suite = isinstance(run.info["config"].get("task_suite"), list)
    return [_job(run, row, segments.get(TrialKey.from_row(row), ()), by_suite) for row in rows]


def select_renderable(run: Run, rows: Sequence[EpisodeRow]) -> list[EpisodeRow]:
    """Return the rows with a complete recording, and log a warning for each of the others.

    Raise BadInputError if there are none, as in a run with `record: light`.
    """
    whole, reasons = [], []
    for row in rows:
        try:
            check_recording(run.trajectory(TrialKey.from_row(row)), run.state_columns)
            whole.append(row)
        except BadInputError as error:
            reasons.append(str(error))
    if not whole:
        raise BadInputError(f"{run.location}: none of {len(rows)} episodes can be rendered: {reasons[0]}")
    for reason in reasons:
        _LOG.warning("no video: %s", reason)
    return whole


def _render_missing(config: Config, folder: RunFolder, videos: VideoFolder, console: Console) -> None:
    if config.record != "full":
        console.print("No videos: they need record full", highlight=False)
        return
    cameras = config.load_benchmark().video_cameras
    if not cameras:
        console.print("No videos: the benchmark has no cameras", highlight=False)
        return
    run = load(folder.path)
    chosen = select_episodes(run.episodes.to_pylist(), config.video.mode, config.video.max_count)
    rows = [row for row in chosen if not videos.has(row)]
    if not rows:
        return
    console.print(f"Rendering {len(rows)} videos (Ctrl-C skips them)", highlight=False)
    style = VideoStyle(cameras, every=config.video.every, fps=config.video.fps, overlay=config.video.overlay)
    render(config, jobs_for(run, rows), style, videos, console, budget_s(config, run))


def budget_s(config: Config, run: Run) -> float:
    """Return the seconds that `video.max_s` allows after a run's last session."""
    if config.video.max_s != "auto":
        return config.video.max_s
    if config.video.mode != "sample":
        return math.inf
    started, ended = (sessions(run.info)[-1].get(name) for name in ("started", "ended"))
    if not isinstance(started, str) or not isinstance(ended, str):
        return _LEAST_S
    return max(_LEAST_S, (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds() / 2)


def _job(run: Run, row: EpisodeRow, segments: tuple[tuple[int, int], ...], by_suite: bool) -> VideoJob:
    key = TrialKey.from_row(row)
    path = run.trajectory_file(key)
    if path is None:
        raise BadInputError(f"{run.location}: no trajectory of {key} was recorded; videos need runs with record full")
    task = Task(row["suite"], row["task_id"], row["task_name"], row["instruction"], 0, row["max_steps"])
    return VideoJob(task, row["trial"], row["status"], video_name(row, by_suite), path, segments, run.state_columns)


def _segments(run: Run) -> dict[TrialKey, tuple[tuple[int, int], ...]]:
    found: dict[TrialKey, list[tuple[int, int]]] = {}
    named = ["kind", "suite", "task_id", "trial", "step", "latency_steps", "waypoint_index"]
    for row in run.decisions.select(named).to_pylist():
        if row["kind"] == "segment":
            begins = row["step"] + (row["latency_steps"] or 0)
            found.setdefault(TrialKey.from_row(row), []).append((begins, row["waypoint_index"]))
    return {key: tuple(pairs) for key, pairs in found.items()}


def _ray(config: Config) -> contextlib.AbstractContextManager[None]:
    """Return a context with Ray: the one that is initialized, or one for this context only."""
    return contextlib.nullcontext() if ray.is_initialized() else running_ray(config)


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    text = TextColumn("{task.description}")
    return Progress(text, *columns, console=console, transient=True, disable=not console.is_terminal)
