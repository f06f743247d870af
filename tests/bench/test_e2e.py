"""`bench e2e` measures whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.results.recorded import write_run
from wpray.bench import e2e
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.errors import RunStoppedError


def test_a_run_with_errors_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[Config] = []

    def evaluate(config: Config) -> int:
        ran.append(config)
        return 1

    monkeypatch.setattr("wpray.run.evaluation.evaluate", evaluate)
    with pytest.raises(RunStoppedError, match="has errors"):
        e2e.main(["--suite", "fake", "--envs", "2", "--tasks", "0,2", "--json", str(tmp_path / "figures.json")])
    assert (ran[0].tasks, ran[0].num_env_actors, ran[0].output_dir is None) == ([0, 2], 2, False)
    assert not list(tmp_path.iterdir())


def test_several_numbers_of_environments_are_compared_with_the_plan_and_the_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Config] = []

    def evaluate(config: Config) -> int:
        assert config.output_dir is not None
        write_run(Path(config.output_dir), [[False] * 40] * 2, workers=2 + len(ran))
        ran.append(config)
        return 0

    monkeypatch.setattr("wpray.run.evaluation.evaluate", evaluate)
    settings = tmp_path / "run.yaml"
    settings.write_text(
        "policy: tests.looking_policy\ntask_suite: fake\nnum_parallel: 7\nray: {num_policy_actors: 2}\n"
    )
    asked = ["--config", str(settings), "--environments", "2,3,auto", "--json", str(tmp_path / "out.json")]
    assert e2e.main([*asked, "--trials", "40", "--tasks", "0,1"]) == 0, "a policy of its own has no target"
    assert [config.num_env_actors for config in ran] == [2, 3, "auto"]
    assert {(config.policy, config.ray.num_policy_actors) for config in ran} == {("tests.looking_policy", 2)}
    said, figures = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert "of the best given" in said and "plan: from built-in figures" in said
    two, three, auto = figures
    assert two["steady"] == pytest.approx(2 * 60 / 3, rel=0.1) and three["steady"] > two["steady"]
    assert (three["of_best"], two["of_best"]) == (1, pytest.approx(two["steady"] / three["steady"]))
    assert auto["of_best"] == pytest.approx(4 / 3, rel=0.1) and auto["environments"] == [4]
    assert two["forecast_ratio"] == pytest.approx(two["planned_steady"] / two["steady"])


@pytest.mark.parametrize("numbers", ["0", "2,many", "2,,3"])
def test_numbers_of_environments_that_are_none_are_refused(numbers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(e2e.main, ["--environments", numbers]) == 2
    assert "--environments" in capsys.readouterr().err
    assert run_command(e2e.main, ["--environments", "2", "--envs", "2"]) == 2
