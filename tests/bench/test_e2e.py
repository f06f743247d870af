"""`bench e2e` measures whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from wpray.bench import e2e
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
