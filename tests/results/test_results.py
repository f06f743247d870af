"""Writing, resuming, merging and summing up, with real files."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.orchestration.row_sink import RowSink
from wpray.results.atomic import DiskFullError, write_atomic
from wpray.results.encode import EncodedEpisode, EpisodeContext, encode_episode, encode_error, scene_from_metadata
from wpray.results.merge import merge
from wpray.results.schema import DECISION_SCHEMA, EPISODE_SCHEMA
from wpray.results.statistics import stratified, wilson
from wpray.results.summary import Tally, log_lines
from wpray.results.writer import Outcome, RunFolder, safe_name
from wpray.types import (
    Decision,
    EpisodeResult,
    EpisodeTimes,
    Failure,
    FloatArray,
    SceneState,
    State,
    StateColumn,
    Task,
    Timing,
    Trajectory,
    Trial,
    TrialKey,
)

TASK = Task("libero_object", 3, "pick_up_the_soup", "pick up the soup", num_trials=50, max_steps=280)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CONTEXT = EpisodeContext("run", "scripted", None, "wpray", "host", "env-0", 1, NOW, NOW)


def _state(p: FloatArray) -> State:
    robot = {"eef_pos": p[:3], "eef_quat": p[3:7], "gripper_qpos": p[7:9]}
    drawn = {"render_qpos": p[:70], "render_site_alpha": np.ones(5, np.float32)}
    return {**robot, "qpos": p[:70], "qvel": p[:62], **drawn}


def _result(trial: int = 0, steps: int = 150, success: bool = True) -> EpisodeResult:
    """An episode whose joints move smoothly, as real ones do."""
    rng = np.random.default_rng(trial)
    phase = np.cumsum(rng.normal(0, 0.01, (steps, 80)), axis=0)
    states = tuple(map(_state, phase))
    decisions = (
        Decision("plan", 10, 0, 0, np.ones((7, 8), np.float32), np.arange(7), None, None, 0.1, Timing(0.01, 0.02, 4)),
        Decision("segment", 10, 0, 0, None, None, 1, 20, 0.0, Timing()),
    )
    return EpisodeResult(
        trial=Trial(TASK, trial, 0),
        success=success,
        num_steps=steps,
        num_plans=1,
        num_segments=1,
        decisions=decisions,
        trajectory=Trajectory(rng.uniform(-1, 1, (steps, 7)), states, SceneState(np.ones((9, 3)), np.ones((9, 4)))),
        times=EpisodeTimes(0.1, 0.2, 0.3, 0.4, 1.0),
    )


def _folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open()
    return folder


def test_tables_hold_one_row_an_episode_and_one_a_decision(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    for trial in (2, 0, 1):
        folder.write_episodes(encode_episode(_result(trial, success=trial != 1), CONTEXT, "full"))
    folder.write_episodes(
        encode_error(Trial(TASK, 3, 0), CONTEXT, Failure("environment", "ValueError", "boom", "traceback"))
    )
    merge(folder)
    episodes, decisions = pq.read_table(tmp_path / "episodes.parquet"), pq.read_table(tmp_path / "decisions.parquet")
    assert episodes.schema.equals(EPISODE_SCHEMA)
    assert [field.metadata for field in episodes.schema] == [field.metadata for field in EPISODE_SCHEMA]
    assert decisions.schema.equals(DECISION_SCHEMA)
    assert episodes["trial"].to_pylist() == [0, 1, 2, 3]
    assert episodes["success"].to_pylist() == [True, False, True, None]
    assert episodes["error_message"].to_pylist()[3] == "boom\ntraceback"
    assert decisions["trial"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert decisions["batch_size"].to_pylist()[0] == 4
    assert np.array(decisions["waypoints"].to_pylist()[0]).shape == (7, 8)


def test_a_trajectory_is_exact_small_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    result = _result()
    light = encode_episode(result, CONTEXT, "light").trajectory
    full = encode_episode(result, CONTEXT, "full").trajectory
    assert light is not None and full is not None
    assert len(light) <= 40_000
    assert full == encode_episode(_result(), CONTEXT, "full").trajectory
    path = tmp_path / "t.parquet"
    path.write_bytes(full)
    table = pq.read_table(path)
    assert np.array_equal(np.array(table["action"].to_pylist()), result.trajectory.actions)
    assert np.array_equal(np.array(table["qpos"].to_pylist()), [state["qpos"] for state in result.trajectory.states])
    assert np.array_equal(scene_from_metadata(table.schema.metadata).body_quat, np.ones((9, 4)))
    assert encode_episode(result, CONTEXT, "none").trajectory is None


def test_trajectories_have_the_columns_that_the_benchmark_declares() -> None:
    columns = (
        StateColumn("hand", "where the hand is", "m"),
        StateColumn("drawn", "what is drawn", width=2, record="full", dtype="float32"),
    )
    states = tuple({"hand": np.full(3, step), "drawn": np.full(2, step / 3)} for step in range(4))
    result = dataclasses.replace(_result(steps=4), trajectory=Trajectory(np.zeros((4, 7)), states, None))
    kept = {"light": ["step", "action", "hand"], "full": ["step", "action", "hand", "drawn"]}
    for record, names in kept.items():
        context = dataclasses.replace(CONTEXT, state_columns=columns)
        table = pq.read_table(io.BytesIO(encode_episode(result, context, cast(Any, record)).trajectory or b""))
        assert table.column_names == names
        assert table["hand"].to_pylist() == [[step] * 3 for step in range(4)]
    assert table.schema.field("drawn").type == pa.list_(pa.float32(), 2)
    assert scene_from_metadata(table.schema.metadata) is None


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (StateColumn("goal", "where it must come"), "lacks goal, which the benchmark's state_columns declare"),
        (StateColumn("hand", "where the hand is", width=4), "hand has shape (3,), expected (4,) at every step"),
        (StateColumn("steps", "taken"), "steps has shape (1,), expected one width at every step"),
    ],
)
def test_states_that_are_not_as_declared_are_named(column: StateColumn, said: str) -> None:
    states = tuple({"hand": np.zeros(3), "steps": np.zeros(1 + step)} for step in range(2))
    result = dataclasses.replace(_result(steps=2), trajectory=Trajectory(np.zeros((2, 7)), states, None))
    with pytest.raises(ValueError) as caught:
        encode_episode(result, dataclasses.replace(CONTEXT, state_columns=(column,)), "full")
    assert said in str(caught.value)


def test_resume_keeps_outcomes_tries_errors_again_and_sets_damaged_files_aside(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    for trial in range(4):
        folder.write_episodes(encode_episode(_result(trial), CONTEXT, "light"))
    folder.write_episodes(encode_error(Trial(TASK, 4, 0), CONTEXT, Failure("environment", "E", "m")))
    truncated = folder.part_path(("libero_object", 3, 1))
    truncated.write_bytes(truncated.read_bytes()[:-20])
    folder.part_path(("libero_object", 3, 2)).write_bytes(b"")
    broken = folder.trajectory_path(("libero_object", 3, 3))
    broken.write_bytes(broken.read_bytes()[: len(broken.read_bytes()) // 2])
    assert folder.finished() == {("libero_object", 3, 0): Outcome("success", 150)}
    assert len(list(tmp_path.rglob("*.damaged"))) == 3
    assert folder.finished() == {("libero_object", 3, 0): Outcome("success", 150)}


def test_a_disk_that_is_full_when_tables_are_synced_keeps_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(tmp_path)
    folder.write_episodes(encode_episode(_result(0), CONTEXT, "light"))
    merge(folder)
    before = (tmp_path / "episodes.parquet").read_bytes()
    folder.write_episodes(encode_episode(_result(1), CONTEXT, "light"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskFullError):
        patch.setattr(os, "fsync", full)
        merge(folder)
    assert (tmp_path / "episodes.parquet").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    merge(folder)
    assert pq.read_metadata(tmp_path / "episodes.parquet").num_rows == 2


def test_an_error_row_has_no_trajectory_of_an_attempt_whose_driver_was_killed(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    killed = encode_episode(_result(0), CONTEXT, "light")
    assert killed.trajectory is not None
    write_atomic(folder.trajectory_path(killed.key), killed.trajectory)  # and then, before its part, kill -9
    folder.write_episodes(encode_error(Trial(TASK, 0, 0), CONTEXT, Failure("environment", "E", "m")))
    assert not folder.trajectory_path(killed.key).exists()


def test_a_second_driver_is_refused_and_a_dead_ones_lock_holds_nothing(tmp_path: Path) -> None:
    first = _folder(tmp_path)
    with pytest.raises(BadInputError, match="another driver"):
        RunFolder(tmp_path).open()
    first.close()
    _folder(tmp_path).close()


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        write_atomic(tmp_path / "x", b"data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "..", "a/b\\c\x00d", "", ".hidden", "x" * 500, "ü"])
def test_names_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / safe_name(name)
    assert path.parent == tmp_path
    assert path.resolve().is_relative_to(tmp_path)
    assert path != tmp_path and len(path.name) <= 150


def test_intervals_agree_with_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_confint

    for successes, trials in ((0, 10), (3, 10), (10, 10), (471, 500)):
        low, high = proportion_confint(successes, trials, method="wilson")
        rate = wilson(successes, trials)
        assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-12)
    assert stratified([]).trials == 0


MIXED = [0.5, 0.8, 0.9, 0.95, 0.99, 1.0, 0.7, 0.85, 0.3, 0.97]


@pytest.mark.parametrize("each", [1, 3, 10, 50])
@pytest.mark.parametrize(
    "rates", [MIXED, [0.5] * 10, [0.9] * 10, [0.95] * 5 + [0.05] * 5, [0.97] * 9 + [0.1], [0.2, 0.95]]
)
def test_the_stratified_interval_covers_what_it_should(rates: list[float], each: int) -> None:
    """Whether tasks are alike or not, and from the first trial on: as well as the pooled interval, or nearly 95%."""
    rng = np.random.default_rng(each)
    draws, truth = rng.binomial(each, rates, size=(1500, len(rates))), np.mean(rates)
    intervals = [stratified([(int(k), each) for k in row]) for row in draws]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    pooled = [wilson(interval.successes, interval.trials) for interval in intervals]
    covered_pooled = np.mean([interval.low <= truth <= interval.high for interval in pooled])
    assert covered >= min(0.937, covered_pooled)  # Wilson's own coverage swings a little about 95%
    assert all(a.high - a.low <= b.high - b.low + 1e-12 for a, b in zip(intervals, pooled, strict=True))


def test_the_stratified_interval_is_narrower_where_tasks_are_known_to_differ() -> None:
    easy_and_hard, alike = [(48, 50)] * 5 + [(2, 50)] * 5, [(25, 50)] * 10
    narrow, wide = stratified(easy_and_hard), stratified(alike)
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)
    assert stratified(alike) == wilson(250, 500)
    assert stratified([(1, 1), (0, 1)]) == wilson(1, 2)  # one trial a task says nothing about the tasks
    assert stratified([(5, 5)] * 10) == wilson(50, 50)


def test_the_log_ends_as_monitoring_expects() -> None:
    tally = Tally.planned([(TASK, 30)])
    for index in range(30):
        tally.add(TrialKey("libero_object", 3, index), "success" if index < 28 else "failure", 120)
    assert log_lines(tally)[-1] == "Overall success rate: 93.33% (28/30)"
    assert log_lines(tally)[0].startswith("Task 3 pick_up_the_soup: 93.33% (28/30)")
    tally.add(TrialKey("libero_object", 3, 28), "error", 0)
    assert log_lines(tally)[-1] == "Overall success rate: 93.33% (28/30)"


class KilledError(BaseException):
    """Stands for `kill -9`: nothing that cleans up after errors runs."""


def _write_until_killed(folder: RunFolder, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Writes three episodes together, killed before the system call of that number; False if there are fewer."""
    calls = itertools.count()

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **options: Any) -> Any:
            if next(calls) == at:
                raise KilledError
            return call(*args, **options)

        return act

    with monkeypatch.context() as patch:
        for name in ("open", "write", "fsync", "replace", "mkdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            folder.write_episodes(*(encode_episode(_result(trial, 20), CONTEXT, "light") for trial in range(3)))
        except KilledError:
            return True
    return False


def test_a_kill_while_several_are_written_leaves_each_whole_or_to_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {trial: encode_episode(_result(trial, 20), CONTEXT, "light") for trial in range(3)}
    counts = []
    for at in itertools.count():
        folder = _folder(tmp_path / str(at))
        killed = _write_until_killed(folder, at, monkeypatch)
        folder.close()
        folder = _folder(tmp_path / str(at))
        found = [trial for _, _, trial in folder.finished()]
        counts.append(len(found))
        assert not list(folder.path.rglob("*.tmp")) and not list(folder.path.rglob("*.damaged"))
        for trial in found:
            assert folder.trajectory_path(whole[trial].key).read_bytes() == whole[trial].trajectory
            assert folder.part_path(whole[trial].key).read_bytes() == whole[trial].part
        folder.write_episodes(*(episode for trial, episode in whole.items() if trial not in found))
        assert len(folder.finished()) == 3
        if not killed:
            break
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}


@pytest.mark.parametrize("loss", ["gone", "of another attempt"])
def test_a_part_whose_trajectory_a_power_cut_took_is_run_again(tmp_path: Path, loss: str) -> None:
    """Only the parts' folder is synced: the part tells."""
    folder = _folder(tmp_path)
    folder.write_episodes(*(encode_episode(_result(trial), CONTEXT, "light") for trial in range(2)))
    folder.write_episodes(encode_episode(_result(2), CONTEXT, "none"))
    lost = folder.trajectory_path(("libero_object", 3, 0))
    other = encode_episode(dataclasses.replace(_result(0), trajectory=_result(5).trajectory), CONTEXT, "light")
    lost.unlink() if loss == "gone" else lost.write_bytes(other.trajectory or b"")
    assert {trial for _, _, trial in folder.finished()} == {1, 2}
    folder.write_episodes(encode_episode(_result(0), CONTEXT, "light"))
    assert {trial for _, _, trial in folder.finished()} == {0, 1, 2}


def test_rows_that_do_not_fit_together_are_kept_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for two of three: those are kept and counted, then the run waits, or stops if it is to."""
    folder, shown = _folder(tmp_path), []
    write, room = os.write, [sum(len(e.part) + len(e.trajectory or b"") for e in map(_light, (0, 1)))]

    def little_room(descriptor: int, data: bytes) -> int:
        if len(data) > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", little_room)
    freed, remove = room[0], os.unlink

    def free(path: str) -> None:
        room[0] = freed
        remove(path)

    monkeypatch.setattr(os, "unlink", free)
    tally = Tally.planned([(TASK, 3)])
    listener = SimpleNamespace(on_episode=lambda trial, _: shown.append(trial.init_state))
    recorder = RowSink(Config(task_suite="fake"), folder, tally, cast(Any, listener))
    rows = [(Trial(TASK, trial, 0), _light(trial)) for trial in range(3)]
    with pytest.raises(DiskFullError):
        recorder.keep(rows, lambda: True)
    assert shown == [0, 1] and tally.done == 2
    assert {trial for _, _, trial in folder.finished()} == {0, 1}


def _light(trial: int) -> EncodedEpisode:
    return encode_episode(_result(trial), CONTEXT, "light")


def test_rows_that_came_together_all_count_and_the_first_reason_to_stop_holds(tmp_path: Path) -> None:
    tally = Tally.planned([(TASK, 5)])
    listener = SimpleNamespace(on_episode=lambda *_: None)
    recorder = RowSink(Config(task_suite="fake"), _folder(tmp_path), tally, cast(Any, listener))
    rows = [
        (Trial(TASK, n, 0), encode_error(Trial(TASK, n, 0), CONTEXT, Failure("environment", "E", "boom")))
        for n in range(4)
    ]
    stop = recorder.keep([*rows, (Trial(TASK, 4, 0), _light(4))], lambda: False)
    assert stop is not None and stop.reason.startswith("3 of 3 episodes ended in an error")
    assert (tally.done, tally.errors) == (5, 4)
