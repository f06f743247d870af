"""From recorded runs to files: pixels, container, names, the command, and what fails."""

from __future__ import annotations

import itertools
import logging
import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from tests.results.recorded import write_run
from wpray.benchmarks.fake.environment import FakeEnvironment
from wpray.cli.command import run_command
from wpray.cli.configuration import validate
from wpray.cluster.setup import running_ray
from wpray.errors import BadInputError
from wpray.results import load
from wpray.results.encode import EpisodeContext, encode_episode
from wpray.types import ARM_COLUMNS, Task
from wpray.video import __main__ as command
from wpray.video import render
from wpray.video.encode import encode
from wpray.video.frames import VideoJob, VideoStyle, frames, read_recording
from wpray.video.pool import VideoPool, take_next
from wpray.video.render import jobs_for

CAMERAS = ("agentview", "robot0_eye_in_hand")


def test_an_mp4_holds_every_frame_in_a_format_that_browsers_play(tmp_path: Path) -> None:
    images = [np.full((64, 128, 3), 40 * n, np.uint8) for n in range(5)]
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(images, fps=10))
    with imageio.get_reader(path) as reader:
        facts, read = reader.get_meta_data(), [np.asarray(image) for image in reader]
    assert len(read) == 5 and read[0].shape == (64, 128, 3)
    assert (facts["fps"], facts["codec"]) == (10, "h264") and facts["pix_fmt"].startswith("yuv420p")
    assert all(abs(float(a.mean()) - float(b.mean())) < 3 for a, b in zip(images, read, strict=True))
    raw = path.read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")  # plays before it is all there


def test_frames_are_the_recorded_states_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]])
    run = load(tmp_path)
    job = jobs_for(run, run.episodes.to_pylist())[1]
    assert job.segments == ((0, 0), (20, 1))
    env, recording = FakeEnvironment(), job.trajectory.read_bytes()
    shown = list(frames(env, job, recording, VideoStyle(CAMERAS, size=32, every=13)))
    assert len(shown) == 4 and shown[0].shape == (32, 64, 3)
    states = read_recording(recording, ARM_COLUMNS).states["qpos"]
    assert np.array_equal(shown[-1][0, 0], np.clip(128 + 300 * states[39, :3], 0, 255).astype(np.uint8))
    marked = list(frames(env, job, recording, VideoStyle(CAMERAS, size=64, every=13, overlay=True)))
    assert not np.array_equal(
        marked[0][:10], next(iter(frames(env, job, recording, VideoStyle(CAMERAS, size=64))))[:10]
    )


def test_a_recording_without_states_is_refused(tmp_path: Path) -> None:
    from tests.results.test_results import CONTEXT, _result

    light = encode_episode(_result(), CONTEXT, "light").trajectory
    assert light is not None
    with pytest.raises(BadInputError, match="record full"):
        read_recording(light, ARM_COLUMNS)


@pytest.mark.ray
def test_the_command_renders_what_is_asked_and_notes_it(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False], [True, None]])
    argv = [str(tmp_path), "--size", "32", "--num-actors", "1"]
    assert run_command(command.main, [*argv, "--status", "failure"]) == 0
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["rollout_move_the_cube_0_t1_failure.mp4"]
    paths = load(tmp_path).episodes["video_path"].to_pylist()
    assert paths == [None, "videos/rollout_move_the_cube_0_t1_failure.mp4", None, None]
    elsewhere = tmp_path / "elsewhere"
    assert run_command(command.main, [*argv, "--tasks", "1", "--camera", "agentview", "--out", str(elsewhere)]) == 0
    with imageio.get_reader(elsewhere / "rollout_move_the_cube_1_t0_success.mp4") as reader:
        assert np.asarray(reader.get_data(0)).shape == (32, 32, 3)
    assert load(tmp_path).episodes["video_path"].to_pylist() == paths


@pytest.mark.ray
def test_one_broken_recording_costs_one_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from wpray.results.writer import RunFolder

    write_run(tmp_path, [[True, True]])
    RunFolder(tmp_path).trajectory_path(("fake", 0, 0)).write_bytes(b"garbage")
    with caplog.at_level(logging.WARNING, "wpray"):
        assert run_command(command.main, [str(tmp_path), "--size", "32", "--num-actors", "1"]) == 1
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["rollout_move_the_cube_0_t1_success.mp4"]
    assert "no video: " in caplog.text and "fake_000_00000.parquet: the trajectory is damaged" in caplog.text


@pytest.mark.ray
def test_videos_that_would_exceed_their_time_are_left_out_failures_last(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, True], [True, False]])
    run = load(tmp_path)
    jobs = jobs_for(run, run.episodes.to_pylist())
    config = validate({**run.info["config"]})
    ticks = itertools.count(0.0, 10.0)
    with running_ray(config):
        pool = VideoPool(config, VideoStyle(CAMERAS, size=32), 1, budget_s=45.0, clock=lambda: next(ticks))
        results = list(pool.render(jobs))
    assert [(result.job.task.task_id, result.job.status) for result in results] == [(1, "failure"), (1, "success")]
    assert all(result.video for result in results)


def test_an_actor_goes_on_with_the_task_of_its_suite_which_is_compiled() -> None:
    def job(suite: str, trial: int) -> VideoJob:
        task = Task(suite, 0, "name", "words", num_trials=3, max_steps=9)
        return VideoJob(task, trial, "success", "name", Path("path"), (), ARM_COLUMNS)

    pending = [job("a", 1), job("b", 1), job("b", 2)]
    assert [take_next(pending, job("b", 0)).task.suite for _ in range(3)] == ["b", "b", "a"]


@pytest.mark.parametrize(
    ("video", "minutes", "budget_s"),
    [({}, 10, 300.0), ({}, 0.1, 20.0), ({"mode": "all"}, 10, math.inf), ({"mode": "all", "max_s": 7}, 10, 7.0)],
)
def test_a_samples_videos_take_half_of_the_evaluations_time(
    tmp_path: Path, video: dict[str, Any], minutes: float, budget_s: float
) -> None:
    write_run(tmp_path, [[True]])
    run = load(tmp_path)
    ended = datetime.fromisoformat("2026-11-29T10:00:00+00:00")
    run.info["sessions"] = [{"started": (ended - timedelta(minutes=minutes)).isoformat(), "ended": ended.isoformat()}]
    assert render.budget_s(validate({"video": video}), run) == budget_s


@pytest.mark.parametrize(
    "more", ["--size 33", "--size 9999", "--tasks x", "--every 0", "--trials 99", "--status error"]
)
def test_bad_input_is_one_line(tmp_path: Path, more: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, [[True]])
    assert run_command(command.main, [str(tmp_path), *more.split()]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.libero
@pytest.mark.parametrize(("suite", "task_id"), [("libero_object", 0), ("libero_10", 2)])
def test_videos_show_the_pixels_that_were_rendered_inline(suite: str, task_id: int) -> None:
    from wpray.benchmarks.factory import list_tasks, make_environment
    from wpray.benchmarks.views import policy_view
    from wpray.types import EpisodeResult, EpisodeTimes, ObservationSpec, Trajectory, Trial

    trial = Trial(list_tasks(suite)[task_id], 3, seed=5)
    env = make_environment(suite, "wpray")
    env.load(trial.task)
    env.reset(trial)
    actions, states, seen = rng_actions(), [], []
    for action in actions:
        env.step(action)
        states.append(env.state())
        seen.append(env.observe(ObservationSpec()))
    trajectory = Trajectory(actions, tuple(states), env.scene())
    result = EpisodeResult(trial, False, len(actions), 0, 0, (), trajectory, EpisodeTimes(0, 0, 0, 0, 0))
    encoded = encode_episode(result, _context(), "full")
    env.close()
    assert encoded.trajectory is not None
    other = make_environment(suite, "wpray")  # as another process would: never reset, it only renders
    task = Task(suite, task_id, "", "", 0, 1)
    other.load(task)
    job = VideoJob(task, 3, "failure", "v", Path("t"), (), ARM_COLUMNS)
    for image, observation in zip(frames(other, job, encoded.trajectory, VideoStyle(CAMERAS)), seen, strict=True):
        base, wrist = np.split(image, len(CAMERAS), axis=1)
        assert np.array_equal(policy_view(base[::-1]), observation.base_image)
        assert np.array_equal(policy_view(wrist[::-1]), observation.wrist_image)
    rotated = next(
        frames(other, job, encoded.trajectory, VideoStyle(cameras=CAMERAS[:1], rotated=True))
    )  # all but the resizing done
    assert np.array_equal(policy_view(rotated[::-1, ::-1]), seen[0].base_image)
    other.close()


def rng_actions() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (4, 7))


def _context() -> EpisodeContext:
    from tests.results.test_results import CONTEXT

    return CONTEXT
