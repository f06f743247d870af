"""The report: complete, self-contained, escaped, small, quick, whatever the run looks like."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import write_run
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.report import __main__ as command
from wpray.report import activity, facts, sections, waypoints
from wpray.report.page import write_report
from wpray.report.svg import ticks
from wpray.results import load
from wpray.results.merge import merge
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder

SECTIONS = ["headline", "tasks", "episodes", "errors", "steps", "waypoints", "time", "provenance"]


def _page(path: Path, **options: Any) -> str:
    return write_report(path, **options).read_text()


def test_rewards_are_shown_where_they_say_more_than_success(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False, None]], bonus=0.25)
    (row,) = re.findall(r"<tr><th>reward</th>(.*?)</tr>", _page(tmp_path))
    assert re.findall(r"<td>(.*?)</td>", row) == ["2", "0.75", "0.25", "1.25", "1.25", "0.25"]


def test_every_section_is_there_and_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False, None], [True, True, True]])
    html = _page(tmp_path)
    assert re.findall(r'<section id="(\w+)"', html) == SECTIONS
    assert "80.0%" in html and "4 of 5 episodes" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html) and "<script" not in html and "@import" not in html
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg)  # raises unless well-formed
    assert html.count("<svg") == 9
    assert html.count(">task 1 trial") == 3  # one cell per episode


def test_text_from_a_run_is_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    write_run(tmp_path, [[True, None]], stop_reason=hostile, run_id=hostile, state=hostile)
    table = pq.read_table(tmp_path / "episodes.parquet")
    for name in ("instruction", "task_name", "error_message", "error_type", "worker"):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), pa.array([hostile, hostile]))
    pq.write_table(table, tmp_path / "episodes.parquet")
    assert "<script" not in _page(tmp_path)


@pytest.mark.parametrize(
    "outcomes",
    [[[None]], [[False]], [[True]], [[None, None], [False, False]]],
    ids=["error", "failure", "success", "none"],
)
def test_odd_runs_have_a_report(tmp_path: Path, outcomes: list[list[bool | None]]) -> None:
    write_run(tmp_path, outcomes)
    assert 'id="headline"' in _page(tmp_path)


def test_an_unfinished_run_says_how_much_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False], [True]], state="running", planned_episodes=500)
    html = _page(tmp_path)
    assert "3 of 500 episodes have run" in html and "3 of 500<" in html
    write_run(tmp_path / "whole", [[True, False]], planned_episodes=2)
    assert "have run" not in _page(tmp_path / "whole")


def test_tasks_that_are_clearly_harder_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, [[True] * 19 + [False], [True] * 4 + [False] * 16, [True] * 20])
    assert "lies below the overall rate in task 1." in _page(tmp_path)


def test_the_total_bar_says_what_the_time_went_to(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, True, True, True]])
    html = _page(tmp_path)
    bar = html[html.index("What the env actors&#x27; time went to") :]
    bar = bar[: bar.index("</svg>")]
    found = activity.collect(load(tmp_path), facts.collect(load(tmp_path)).rows, bins=360)
    assert f"simulating: {found.shares['simulate']:.1%}" in bar
    widths = [float(width) for width in re.findall(r' width="([\d.]+)" height="26"', bar)]
    assert sum(widths) == pytest.approx(890, abs=1)


def test_a_run_without_trajectories_or_units_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "units", [[True]], waypoint_space=None)
    assert "does not tell the waypoints&#x27; units" in _page(tmp_path / "units")
    write_run(tmp_path / "files", [[True]])
    RunFolder(tmp_path / "files").trajectory_path(("fake", 0, 0)).unlink()
    assert "kept no trajectories" in _page(tmp_path / "files")


def test_checkpoints_are_listed_by_the_roles_that_the_policy_gives_them(tmp_path: Path) -> None:
    config = Config(task_suite="fake", policy="noop", vlm_checkpoint="my_vlm").model_dump(mode="json")
    write_run(tmp_path / "old", [[True]], config=config)  # as before specs named checkpoints
    assert "<tr><th>VLM checkpoint</th><td>my_vlm</td></tr>" in _page(tmp_path / "old")
    write_run(tmp_path / "new", [[True]], config=config, policy_spec={"checkpoints": {"adapter": "lora_7"}})
    page = _page(tmp_path / "new")
    assert "<tr><th>adapter checkpoint</th><td>lora_7</td></tr>" in page and "<th>VLM checkpoint" not in page


def test_waypoints_are_compared_with_where_the_hand_was(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]])
    segments = waypoints.collect(load(tmp_path))
    np.testing.assert_allclose(segments.misses, [0.01, 0.0] * 2, atol=1e-6)
    assert segments.waypoints.tolist() == [0, 1] * 2 and segments.durations.tolist() == [20] * 4
    write_run(tmp_path / "scaled", [[True]], waypoint_space={"scale": [2.0] * 8, "offset": [0.0] * 8})
    assert waypoints.collect(load(tmp_path / "scaled")).misses.max() > 0.2


def test_the_timeline_adds_up(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, True, None, True]])
    run = load(tmp_path)
    found = activity.collect(run, facts.collect(run).rows, bins=100)
    spent = dict(zip(activity.ACTIVITIES, found.seconds.sum(axis=(0, 2)), strict=True))
    assert spent["reset"] == pytest.approx(3 * 0.5)
    assert spent["wait"] == pytest.approx(3 * 0.8)
    assert spent["render"] == pytest.approx(3 * 0.4)
    assert spent["error"] == pytest.approx(3.0)
    assert spent["simulate"] == pytest.approx(3 * (2.8 - 0.5 - 0.8 - 0.4))
    assert found.seconds.sum() == pytest.approx(2 * found.edges[-1])  # two actors, every second accounted for
    assert found.computing.sum() == pytest.approx(3 * (0.2 / 4 + 0.1 / 2))
    assert set(found.batch_size[~np.isnan(found.batch_size)]) == {2.0, 4.0}


def test_a_pause_before_a_resumed_run_is_cut_out(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, True]], workers=1)
    run = load(tmp_path)
    rows = facts.collect(run).rows
    later = rows[1]["started_at"].replace(year=2027)
    rows[1] = {**rows[1], "started_at": later}
    found = activity.collect(run, rows, bins=50)
    assert found.edges[-1] == pytest.approx(2 * 2.8, abs=1e-3)
    assert found.cuts == [pytest.approx(2.8, abs=1e-3)]


def test_covered_seconds_are_exact() -> None:
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    starts, ends = np.array([0.5, 1.25, 1.25]), np.array([2.25, 1.5, 1.75])
    np.testing.assert_allclose(activity.covered(starts, ends, edges), [0.5, 1.75, 0.25])


def test_small_videos_are_inside_and_large_ones_linked(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]])
    videos = VideoFolder.of(tmp_path, None)
    videos.path.mkdir()
    (videos.path / "rollout_move_the_cube_0_t0_success.mp4").write_bytes(b"x" * 900)
    (videos.path / "rollout_move_the_cube_0_t1_failure.mp4").write_bytes(b"x" * 900)
    merge(RunFolder(tmp_path), videos)
    html = _page(tmp_path, embed_bytes=1000)
    assert html.index('src="data:video/mp4') < html.index('src="videos/rollout_move_the_cube_0_t0_success.mp4"')
    assert 'href="#video-0-1"' in html and 'id="video-0-1"' in html
    elsewhere = write_report(tmp_path, tmp_path / "videos" / ".." / "page.html", 0).read_text()
    assert 'src="videos/rollout_move_the_cube_0_t0_success.mp4"' in elsewhere


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 50) == [0, 10, 20, 30, 40, 50]
    assert ticks(98, 121) == [100, 105, 110, 115, 120]
    assert all(0 <= value <= 0.013 for value in ticks(0, 0.013)) and len(ticks(0, 0.013)) >= 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", [[True]])
    assert run_command(command.main, [str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").exists() and not (tmp_path / "run" / "report.html").exists()
    assert run_command(command.main, [str(tmp_path)]) == 2
    assert run_command(command.main, [str(tmp_path / "run"), "--out", str(tmp_path / "no" / "page.html")]) == 2


@pytest.mark.slow
def test_two_thousand_episodes_are_quick_and_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_run(tmp_path, [[bool(x) for x in row] for row in rng.random((10, 50)) < 0.9], workers=16)
    _repeat(tmp_path, 4)
    began = time.perf_counter()
    path = write_report(tmp_path)
    assert load(tmp_path).episodes.num_rows == 2000
    assert time.perf_counter() - began < 20
    assert path.stat().st_size < 15e6


def _repeat(path: Path, times: int) -> None:
    """Extend the run's tables and trajectories to `times` as many tasks."""
    folder = RunFolder(path)
    for name in ("episodes", "decisions"):
        table = pq.read_table(path / f"{name}.parquet")
        index = table.schema.get_field_index("task_id")
        tasks = table["task_id"].to_numpy()
        copies = [table.set_column(index, table.schema.field(index), pa.array(tasks + 10 * n)) for n in range(times)]
        pq.write_table(pa.concat_tables(copies), path / f"{name}.parquet")
    for part in folder.parts():
        part.unlink()
    for source in list((path / "trajectories").iterdir()):
        _, task, trial = source.stem.rsplit("_", 2)
        for number in range(1, times):
            folder.trajectory_path(("fake", int(task) + 10 * number, int(trial))).write_bytes(source.read_bytes())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (119.7, "2 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7199, "2 h 0 min"),
    ],
)
def test_a_span_is_never_of_sixty_seconds_or_minutes(seconds: float, text: str) -> None:
    assert sections._span(seconds) == text
