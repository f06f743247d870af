"""The report's section about how plans were followed, over episodes that were really run."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.results.recorded import write_run
from wpray.benchmarks.fake.environment import FakeEnvironment, fake_tasks
from wpray.config import Config
from wpray.orchestration.actors import rollout_settings
from wpray.policies.local import LocalPolicyClient
from wpray.policies.scripted.policy import ScriptedPolicy
from wpray.report import tracking
from wpray.report.page import write_report
from wpray.results import load
from wpray.results.encode import EpisodeContext, encode_episode
from wpray.results.merge import merge
from wpray.results.writer import RunFolder
from wpray.rollout import run_trial
from wpray.types import EpisodeResult, Trial

_START = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def results() -> list[EpisodeResult]:
    """Three successes, and two episodes that their step limit cuts short."""
    policy, config = LocalPolicyClient(ScriptedPolicy()), Config(replan_on_deviation=True, deviation_threshold=0.02)
    tasks = [fake_tasks()[0]] * 3 + [replace(fake_tasks()[1], max_steps=40)] * 2
    trials = [Trial(task, index % 3, 0) for index, task in enumerate(tasks)]
    return [run_trial(FakeEnvironment(), policy, trial, rollout_settings(config)) for trial in trials]


@pytest.fixture
def run(tmp_path: Path, results: list[EpisodeResult]) -> Path:
    path = tmp_path / "run"
    write_run(path, [[True]])  # for its run.json
    info = json.loads((path / "run.json").read_text())
    for name in ("episodes.parquet", "decisions.parquet"):
        (path / name).unlink()
    folder = RunFolder(path)
    folder.open()
    for file in (path / "trajectories").glob("*"):
        file.unlink()
    context = EpisodeContext("run", "scripted", None, "wpray", "h", "env-0", 1, _START, _START + timedelta(seconds=3))
    folder.write_episodes(*(encode_episode(result, context, "full") for result in results))
    folder.write_info(info)
    merge(folder)
    folder.close()
    return path


def test_the_numbers_are_those_of_the_episodes(run: Path, results: list[EpisodeResult]) -> None:
    found = tracking.collect(load(run)).groups
    assert [result.success for result in results] == [True] * 3 + [False] * 2
    for name, chosen in (("all", results), ("successes", results[:3]), ("failures", results[3:])):
        misses, ends, seconds = [], Counter[str](), 0
        for result in chosen:
            plans = [decision for decision in result.decisions if decision.kind == "plan"]
            ends.update(str(plan.plan_end) for plan in plans)
            for segment in (decision for decision in result.decisions if decision.kind == "segment"):
                aim = plans[segment.plan_index].waypoints[segment.waypoint_index]  # type: ignore[index]
                reached = result.trajectory.states[segment.step + segment.steps - 1]  # type: ignore[operator]
                misses.append(reached["eef_pos"] - aim[:3])
                seconds += 1
        assert len(found[name].errors) == seconds > 3
        np.testing.assert_allclose(found[name].position, misses, atol=1e-6)
        np.testing.assert_allclose(found[name].errors[:, :3], misses, atol=1e-6)  # its units are metres
        assert found[name].ends == ends
    assert found["failures"].ends["step_budget"] == 2
    assert found["successes"].ends["success"] == 3
    assert found["all"].ends["deviation"] > 0


def test_the_page_has_the_section_split_by_outcome(run: Path) -> None:
    html = write_report(run).read_text()
    section = html[html.index('<section id="tracking"') :]
    section = section[: section.index("</section>")]
    assert section.count("<th>successes</th><th>failures</th>") == 3
    for name in ("x, mm", "rotation, degrees", "gripper as planned", "rotation 3, normalized", "the step limit was"):
        assert f"<td>{name}" in section, name
    found = tracking.collect(load(run)).groups
    shares = [f"{found[name].grips.mean():.1%}" for name in ("all", "successes", "failures")]
    row = re.search(r"<td>gripper as planned</td>(.*?)</tr>", section)
    assert row is not None and re.findall(r"<td>(.*?)</td>", row[1]) == shares


def test_older_runs_and_policies_without_waypoints_have_no_such_section(tmp_path: Path) -> None:
    write_run(tmp_path, [[True, False]])
    assert 'id="tracking"' not in write_report(tmp_path).read_text()


def test_angles_between_rotations_are_right_also_where_axis_angles_jump() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 2, (2, 200, 3))
    a[0], b[0] = [np.pi - 0.01, 0, 0], [-np.pi + 0.01, 0, 0]
    a[1] = b[1] = 0
    expected = (Rotation.from_rotvec(a) * Rotation.from_rotvec(b).inv()).magnitude()
    np.testing.assert_allclose(tracking.angles(a, b), expected, atol=1e-6)
    assert expected[0] == pytest.approx(0.02)


def test_rows_that_are_not_whole_are_left_out(run: Path) -> None:
    before = tracking.collect(load(run)).groups["all"]
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = run / "decisions.parquet"
    table = pq.read_table(file)
    index = table.schema.get_field_index("tracking_error")
    values = table["tracking_error"].to_pylist()
    where = [number for number, value in enumerate(values) if value is not None]
    values[where[0]], values[where[1]], values[where[2]] = None, [float("nan")] * 8, [1.0]
    table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    pq.write_table(table, file)
    after = tracking.collect(load(run)).groups["all"]
    assert len(after.errors) == len(before.errors) - 3
