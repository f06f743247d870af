"""A race: who goes on follows stated rules, a resumed one decides alike, and the winner's rate is not what chose it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import write_run
from tests.sweep.step_policy import write_checkpoints
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.settings import fingerprint, outcome_fields
from wpray.results.statistics import wilson
from wpray.results.writer import RunFolder
from wpray.run.evaluation import RunResult
from wpray.sweep import command
from wpray.sweep.__main__ import main

TASKS = 1
SOLVED = {1: 0.1, 2: 0.6, 3: 0.4, 4: 0.9, 5: 0.8}  # share of the trials, by step


class Evaluations:
    """Stands in for runs: it writes the rows that a checkpoint's share makes of each trial."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []  # step, first trial, end
        self.videos: list[str] = []  # mode of each call
        self.states: list[str] = []  # of the sweep at each call
        self.fails: Callable[[int, int], Exception | None] = lambda step, number: None

    def __call__(self, config: Config, parts: Any, pools: Any) -> RunResult:
        step = int(Path(str(config.vlm_checkpoint)).parent.name.removeprefix("step_"))
        error = self.fails(step, len(self.calls))
        if error is not None:
            raise error
        start, end = config.trial_start, config.num_trials_per_task
        self.calls.append((step, start, end))
        self.videos.append(config.video.mode)
        place = Path(str(config.output_dir))
        self.states.append(json.loads((place.parents[1] / "sweep.json").read_text())["state"])
        place.mkdir(parents=True, exist_ok=True)
        write_run(
            place,
            [[_wins(step, task, trial) for trial in range(start, end)] for task in range(TASKS)],
            steps=20,
            config=config.model_dump(mode="json"),
            outcome_fields=outcome_fields(config),
            fingerprint=fingerprint(config),
            planned_episodes=TASKS * (end - start),
        )
        return RunResult(0, RunFolder(place))


def _wins(step: int, task: int, trial: int) -> bool:
    return bool(np.random.default_rng([task, trial]).random() < SOLVED[step])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Evaluations:
    write_checkpoints(tmp_path / "run", dict(SOLVED))
    found = Evaluations()
    monkeypatch.setattr(command, "evaluate_with", found)
    return found


def _argv(root: Path, out: str, *options: str) -> list[str]:
    base = ["--task_suite", "fake", "--policy", "noop", "--tasks", "0", "--vlm_checkpoint", f"{root}/run/*/vlm"]
    return [*base, "--num_trials_per_task", "16", "--output_dir", str(root / out), *options]


def _race(root: Path, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / out / "sweep.json").read_text())["race"]
    return found


def _step(name: str) -> int:
    return int(name.split("_")[1])


def _rate(step: int, end: int) -> float:
    return float(np.mean([_wins(step, task, trial) for task in range(TASKS) for trial in range(end)]))


def test_the_better_half_goes_on_with_twice_as_many_trials(runs: Evaluations, tmp_path: Path) -> None:
    assert main(_argv(tmp_path, "out", "--race", "2", "--held_out", "6")) == 0
    race, ends = _race(tmp_path, "out"), (2, 4, 8, 10)
    entered = sorted(SOLVED)
    for number, its in enumerate(race["rounds"]):
        end, last = ends[number], number == len(race["rounds"]) - 1
        assert its["trials_end"] == end
        assert {_step(name): rate for name, rate in its["rates"].items()} == pytest.approx(
            {step: _rate(step, end) for step in entered}
        )
        count = 1 if end == 10 else -(-len(entered) // 2)
        least = sorted((_rate(step, end) for step in entered), reverse=True)[count - 1]
        expected = [step for step in entered if _rate(step, end) >= least]
        went_on = [_step(name) for name in its["went_on"]]
        assert went_on == (expected[-1:] if end == 10 else expected)
        assert last or len(went_on) > 1
        entered = went_on
    assert [_step(race["winner"])] == entered
    assert runs.calls[-1] == (entered[0], 10, 16)
    assert max(end for _, start, end in runs.calls if start == 0) <= 10  # no round has seen a held-out trial
    assert "All checkpoints run trials 0 to 1 of each task" in race["rules"]


def test_the_table_and_the_report_keep_the_held_out_trials_apart(runs: Evaluations, tmp_path: Path) -> None:
    assert main(_argv(tmp_path, "out", "--race", "2")) == 0
    rows = [row for row in pq.read_table(tmp_path / "out" / "sweep.parquet").to_pylist() if row["suite"] is None]
    winner = _race(tmp_path, "out")["winner"]
    apart = [row for row in rows if row["held_out"]]
    assert [(row["checkpoint"], row["trials"]) for row in apart] == [(winner, TASKS * 8)]
    assert [row["step"] for row in rows if not row["held_out"]] == sorted(SOLVED)
    won = sum(_wins(_step(winner), task, trial) for task in range(TASKS) for trial in range(8, 16))
    assert apart[0]["successes"] == won
    page = (tmp_path / "out" / "report.html").read_text()
    said = f"On its held-out trials: {wilson(won, 8).rate:.1%} ({won} of 8"
    assert f"Winner: step_{_step(winner)}. {said}" in page


def test_a_race_that_was_interrupted_decides_as_an_undisturbed_one(runs: Evaluations, tmp_path: Path) -> None:
    assert main(_argv(tmp_path, "whole", "--race", "2")) == 0
    calls, runs.calls = runs.calls, []
    for stop in (3, len(calls) - 1):
        runs.fails = lambda step, number, stop=stop: KeyboardInterrupt() if number == stop else None  # type: ignore[misc]
        assert run_command(main, _argv(tmp_path, "cut", "--race", "2")) == 130
    runs.fails = lambda step, number: None
    assert main(_argv(tmp_path, "cut", "--race", "2")) == 0
    assert runs.calls == calls
    assert _race(tmp_path, "cut") == _race(tmp_path, "whole")
    tables = [pq.read_table(tmp_path / out / "sweep.parquet") for out in ("whole", "cut")]
    assert tables[0].equals(tables[1])


def test_a_checkpoint_that_fails_leaves_the_race(runs: Evaluations, tmp_path: Path) -> None:
    runs.fails = lambda step, number: BadInputError("vlm_checkpoint: broken") if step == 4 else None
    assert main(_argv(tmp_path, "out", "--race", "2")) == 1
    race = _race(tmp_path, "out")
    assert 4 not in {_step(name) for its in race["rounds"] for name in its["rates"]}
    assert _step(race["winner"]) != 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--race", "12", "--held_out", "5"), "12 trials at first and 5 held out are more than the 16"),
        (("--race", "1", "--num_trials_per_task", "1"), "1 trials at first and 1 held out are more than the 1"),
        (("--race", "0"), "not a whole number from 1"),
        (("--held_out", "3"), "--held_out: is of a race"),
        (("--race", "2", "--watch", "5"), "--watch: a race needs all checkpoints"),
        (("--race", "2", "--stop_when.half_width", "0.1"), "--race: needs the same trials of each task"),
        (("--race", "2", "--video.mode", "all"), "--race: renders no videos"),
        (("--watch", "0"), "not a number above 0"),
    ],
)
def test_wrong_rules_are_one_line(
    options: tuple[str, ...], reason: str, runs: Evaluations, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, _argv(tmp_path, "out", *options)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and reason in said[0]
    assert not (tmp_path / "out").exists() and not runs.calls


def test_other_rules_are_another_sweep(runs: Evaluations, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_argv(tmp_path, "out", "--race", "2")) == 0
    capsys.readouterr()
    assert run_command(main, _argv(tmp_path, "out", "--race", "4")) == 2
    assert "holds another sweep, which differs in: race" in capsys.readouterr().err
    assert run_command(main, _argv(tmp_path, "out", "--race", "2", "--plan")) == 0
    assert "All checkpoints run trials 0 to 1" in capsys.readouterr().out.replace("\n", " ")


def test_checkpoints_that_training_has_removed_stay_in_the_tables(runs: Evaluations, tmp_path: Path) -> None:
    assert main(_argv(tmp_path, "out")) == 0
    (tmp_path / "run" / "step_2" / "vlm").rename(tmp_path / "removed")
    assert main(_argv(tmp_path, "out")) == 0
    rows = pq.read_table(tmp_path / "out" / "sweep.parquet").to_pylist()
    assert sorted({row["step"] for row in rows}) == sorted(SOLVED)
    assert len(runs.calls) == len(SOLVED)


def test_a_checkpoint_that_training_has_removed_does_not_change_what_a_race_decided(
    runs: Evaluations, tmp_path: Path
) -> None:
    assert main(_argv(tmp_path, "out", "--race", "2")) == 0
    race, calls = _race(tmp_path, "out"), list(runs.calls)
    lost = set(race["rounds"][0]["rates"]) - {race["winner"]}
    (tmp_path / "run" / f"step_{_step(min(lost))}" / "vlm").rename(tmp_path / "removed")
    assert main(_argv(tmp_path, "out", "--race", "2")) == 0
    assert _race(tmp_path, "out") == race and runs.calls == calls


def test_videos_are_rendered_after_the_last_checkpoint_if_asked_for(runs: Evaluations, tmp_path: Path) -> None:
    assert main(_argv(tmp_path, "out", "--video.mode", "failures")) == 0
    assert runs.videos == ["none"] * len(SOLVED) + ["failures"] * len(SOLVED)
    assert [step for step, *_ in runs.calls] == sorted(SOLVED) * 2


def test_a_sweep_is_under_way_from_its_first_run_to_its_last_video(runs: Evaluations, tmp_path: Path) -> None:
    """Else the same command would begin anew after a kill."""
    assert main(_argv(tmp_path, "out", "--video.mode", "failures")) == 0
    assert runs.states == ["running"] * 2 * len(SOLVED)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["state"] == "finished"
