"""An exported run has what LeRobot's loader reads, and its images, states and actions match."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import write_run
from wpray.cli.command import run_command
from wpray.export import __main__ as command
from wpray.export.lerobot import pictures_rotated
from wpray.export.statistics import levels, of_levels, of_numbers
from wpray.results import load, matrix

WAIT = 10  # steps before the policy acts, which the data set leaves out


def _export(run: Path, out: Path, *more: str) -> int:
    return run_command(command.main, ["lerobot", str(run), str(out), *more])


def test_a_frame_is_an_observation_and_the_action_after_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [[True, None], [False, True]], steps=40)
    assert _export(tmp_path / "run", tmp_path / "out", "--no-videos") == 0
    frames = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    recorded = load(tmp_path / "run").trajectory(("fake", 1, 0))
    state, action = matrix(frames, "observation.state")[30:60], matrix(frames, "action")[30:60]
    np.testing.assert_allclose(state[:, :3], matrix(recorded, "eef_pos")[WAIT - 1 : -1], atol=1e-6)
    np.testing.assert_allclose(state[:, 6:], matrix(recorded, "gripper_qpos")[WAIT - 1 : -1], atol=1e-6)
    np.testing.assert_allclose(action, matrix(recorded, "action")[WAIT:], atol=1e-6)
    assert frames["index"].to_pylist() == list(range(90))
    assert frames["episode_index"].to_pylist() == [0] * 30 + [1] * 30 + [2] * 30
    assert frames["task_index"].to_pylist() == [0] * 30 + [1] * 60
    np.testing.assert_allclose(frames["timestamp"].to_numpy()[30:60], np.arange(30) / 20, atol=1e-6)


def test_the_loader_finds_what_it_looks_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [[True, False], [True]], steps=40)
    assert _export(tmp_path / "run", tmp_path / "out", "--no-videos", "--status", "success") == 0
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 20, 2, 60)
    assert info["video_path"] is None and info["splits"] == {"train": "0:2"}
    tasks = pd.read_parquet(tmp_path / "out/meta/tasks.parquet")
    assert int(tasks.loc["move the cube 1"].task_index) == 1 and tasks.iloc[0].name == "move the cube 0"
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in episodes] == [(0, 30), (30, 60)]
    assert [row["tasks"] for row in episodes] == [["move the cube 0"], ["move the cube 1"]]
    frames = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    assert set(stats) == set(info["features"]) == set(frames.column_names)
    np.testing.assert_allclose(stats["action"]["mean"], matrix(frames, "action").mean(axis=0), atol=1e-6)
    for name, feature in info["features"].items():
        width = feature["shape"][0]
        assert all(len(stats[name][key]) == width for key in ("min", "max", "mean", "std", "q01", "q99")), name
        assert len(episodes[0][f"stats/{name}/mean"]) == width


@pytest.mark.ray
def test_videos_show_the_state_of_their_frame(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [[True], [True]], steps=40)
    assert _export(tmp_path / "run", tmp_path / "out", "--num-actors", "1") == 0
    key = "observation.images.image2"
    row = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    where = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    with imageio.get_reader(tmp_path / "out" / info["video_path"].format(video_key=key, **where)) as reader:
        images = [np.asarray(image) for image in reader]
        assert reader.get_meta_data()["fps"] == 20
    first = round(row[f"videos/{key}/from_timestamp"] * 20)
    assert row[f"videos/{key}/to_timestamp"] * 20 == pytest.approx(first + 30) and len(images) == 40
    frames = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet").slice(30, 30)
    for image, state in zip(images[first:], matrix(frames, "observation.state"), strict=False):
        colour = np.clip(128 + 300 * state[:3], 0, 255)  # as the fake environment draws its hand
        np.testing.assert_allclose(image.mean(axis=(0, 1)), colour, atol=4)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())[key]
    expected = np.mean([image.mean(axis=(0, 1)) for image in images[first : first + 30 : 10]], axis=0) / 255
    np.testing.assert_allclose(np.ravel(stats["mean"]), expected, atol=0.01)  # both episodes move in the same way
    assert np.shape(stats["mean"]) == (3, 1, 1) and stats["count"] == [6]


def test_statistics_of_levels_are_those_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(3, 200, (4, 40, 40, 3), dtype=np.uint8)
    found, pixels = of_levels(levels(images), 4), images.reshape(-1, 3) / 255
    for name, expected in of_numbers(pixels).items():
        if name != "count":
            np.testing.assert_allclose(np.ravel(found[name]), expected, atol=0.006, err_msg=name)
    assert found["count"] == [4]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", [[None]])
    (tmp_path / "there").mkdir()
    for argv in (
        (tmp_path / "run", tmp_path / "there"),
        (tmp_path / "no", tmp_path / "x"),
        (tmp_path / "run", tmp_path / "x"),
    ):
        assert _export(*argv) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("spec", "usual", "rotated"),
    [
        ({"images": True, "cameras": {"base": {"rotated": False}, "wrist": {"rotated": False}}}, True, False),
        ({"images": True, "cameras": {"base": {"rotated": True}}}, False, True),
        ({"images": True, "cameras": {"base": {"rotated": True}, "wrist": {"rotated": False}}}, False, False),
        ({"images": False, "cameras": {"base": {"rotated": True}}}, False, False),  # it saw none
        (None, True, True),  # a run of a version that did not say
    ],
)
def test_pictures_are_turned_as_the_policy_saw_them(spec: object, usual: bool, rotated: bool) -> None:
    run: Any = SimpleNamespace(info={} if spec is None else {"policy_spec": spec})
    assert pictures_rotated(run, usual) is rotated
