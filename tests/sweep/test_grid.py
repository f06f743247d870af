"""Which checkpoints a sweep evaluates: patterns, lists, combinations, their order and their steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wpray.errors import BadInputError
from wpray.sweep.__main__ import _split_lists
from wpray.sweep.grid import Grid, labels, natural, read_grid, steps

BASE = {"task_suite": "fake", "policy": "noop"}


def _folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def _grid(**settings: Any) -> Grid:
    return read_grid({**BASE, **settings})


def test_a_pattern_is_what_it_matches_by_step(tmp_path: Path) -> None:
    _folders(tmp_path, *(f"step_{step}/vlm" for step in (1000, 200, 9, 30000)), "step_7", "other/vlm")
    found = _grid(vlm_checkpoint=f"{tmp_path}/step_*/vlm").checkpoints()
    assert [Path(one.paths["vlm_checkpoint"]).parent.name for one in found] == [
        *("step_9", "step_200", "step_1000", "step_30000")
    ]
    assert [one.config.vlm_checkpoint for one in found] == [one.paths["vlm_checkpoint"] for one in found]
    assert len({one.name for one in found}) == 4


def test_a_name_does_not_depend_on_the_other_checkpoints(tmp_path: Path) -> None:
    _folders(tmp_path, "1/vlm")
    grid = _grid(vlm_checkpoint=f"{tmp_path}/*/vlm")
    before = grid.checkpoints()[0].name
    _folders(tmp_path, "0/vlm", "2/vlm")
    assert [one.name for one in grid.checkpoints()][1] == before


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    _folders(tmp_path, "1/vlm", "2/vlm", "3/ae", "4/ae")
    grid = _grid(vlm_checkpoint=[f"{tmp_path}/2/vlm", f"{tmp_path}/1/vlm"], ae_checkpoint=f"{tmp_path}/*/ae")
    found = [tuple(Path(path).parent.name for path in one.paths.values()) for one in grid.checkpoints()]
    assert found == [("1", "3"), ("1", "4"), ("2", "3"), ("2", "4")]


def test_a_file_that_is_called_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    _folders(tmp_path, "a[1]")
    with pytest.raises(BadInputError, match="nothing to sweep"):
        _grid(vlm_checkpoint=f"{tmp_path}/a[1]")


def test_a_policys_own_path_may_be_a_pattern(tmp_path: Path) -> None:
    _folders(tmp_path, "10", "9")
    source = {"policy": "openpi", "policy_args": {"url": "ws://a", "image_key": f"{tmp_path}/*"}}
    found = _grid(**source).checkpoints()
    assert [one.config.policy_args["image_key"] for one in found] == [f"{tmp_path}/9", f"{tmp_path}/10"]
    assert {one.config.policy_args["url"] for one in found} == {"ws://a"}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/r/step_100/vlm2", "/r/step_20/vlm2"], [100, 20]),
        (["/v2/a/100/vlm", "/v2/b/100/vlm", "/v2/b/200/vlm"], [100, 100, 200]),
        (["/r/a/vlm", "/r/b/vlm"], [None, None]),
        (["/r/epoch=3-step=1500.ckpt", "/r/last.ckpt"], [1500, None]),
        (["/data7/step_5/vlm"], [5]),
    ],
)
def test_the_step_is_the_last_number_in_what_differs(paths: list[str], expected: list[int | None]) -> None:
    assert steps(paths) == expected


def test_labels_hold_what_differs() -> None:
    assert labels(["/r/a/1/vlm", "/r/b/1/vlm"]) == ["a", "b"]
    assert labels(["/r/1/vlm"]) == ["1/vlm"]


def test_numbers_sort_by_value() -> None:
    assert sorted(["s10", "s9", "s", "t1", "s9b"], key=natural) == ["s", "s9", "s9b", "s10", "t1"]


def test_a_shell_that_expands_the_pattern_gives_a_list() -> None:
    argv = ["--seed", "3", "--vlm_checkpoint", "a", "b", "--ae_checkpoint=c", "--plan"]
    assert _split_lists(argv) == (["--seed", "3", "--plan"], {"vlm_checkpoint": ["a", "b"], "ae_checkpoint": "c"})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "nothing to sweep: give a path a pattern in quotes"),
        ({"vlm_checkpoint": "one"}, "nothing to sweep"),
        ({"vlm_checkpoint": []}, "vlm_checkpoint: must be paths"),
        ({"vlm_checkpoint": ["a", 3]}, "vlm_checkpoint: must be paths or patterns, not '3'"),
        ({"vlm_checkpoint": ["$NOT_THERE_AT_ALL/x", "b"]}, "NOT_THERE_AT_ALL is not set"),
    ],
)
def test_what_is_no_grid_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        _grid(**settings).checkpoints()
