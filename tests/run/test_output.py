"""Selection of a run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.run.output import choose_folder, opened

CONFIG = Config(task_suite="fake")


def test_runs_that_start_together_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [choose_folder(CONFIG, claim=True).path for _ in range(20)]  # within one second, or two
    assert len(set(paths)) == 20 and all(path.is_dir() for path in paths)
    with opened(choose_folder(CONFIG, claim=True), CONFIG) as folder:
        assert folder.path not in paths


def test_reading_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    choose_folder(CONFIG)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["a file", "a lost link"])
def test_a_place_for_runs_that_is_none_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs")
    with pytest.raises(BadInputError, match="cannot write to runs"):
        choose_folder(CONFIG, claim=True)
