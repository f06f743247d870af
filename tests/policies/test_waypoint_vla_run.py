"""The learned policy in a whole run: what `run.json` and `decisions.parquet` say of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
from wpray.models import synthetic


@pytest.mark.ray
def test_a_run_says_which_files_answered_and_where_each_requests_time_went(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "weights", "tiny", "bfloat16")
    run = tmp_path / "run"
    options = {
        "--config": tmp_path / "weights" / "config.yaml",
        "--task_suite": "fake",
        "--tasks": "0-3",
        "--num_parallel": 4,
        "--env.max_steps": 60,
        "--video.mode": "none",
        "--output_dir": run,
    }
    command = [sys.executable, "-m", "wpray.launch", *(str(part) for pair in options.items() for part in pair)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = ("vlm/model.safetensors", "ae/model.safetensors", "dataset_statistics.json", "tokenizer.model")
    paths = [tmp_path / "weights" / name for name in files]
    expected = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    info = json.loads((run / "run.json").read_text())
    assert info["policy_files"] == expected
    statistics = info["policy_sources"]["dataset_statistics"]
    assert (statistics["path"], statistics["data_set"]) == (str(paths[2]), None)
    assert {"vlm_checkpoint", "ae_checkpoint"} < info["policy_sources"].keys()
    assert info["policy_spec"]["checkpoints"].keys() == {"VLM", "action expert"}
    said = f"dataset_statistics_path: {paths[2]}: one data set, without a name, numbers {statistics['sha256'][:16]}"
    assert (run / "run.log").read_text().count(said) == 1

    rows = pq.read_table(run / "decisions.parquet").to_pylist()
    asked = [row for row in rows if row["wait_s"] > 0]
    given = [row for row in rows if row["wait_s"] == 0]
    assert {row["kind"] for row in asked} == {"plan", "segment"}
    for row in asked:
        assert 1 <= row["batch_size"] <= 4
        assert row["compute_s"] > 0 and row["queue_s"] >= 0
        assert row["queue_s"] + row["compute_s"] < row["wait_s"]  # the rest is its way there and back
    plans = {(row["task_id"], row["plan_index"]): row for row in asked if row["kind"] == "plan"}
    assert len(given) == len(plans)  # a plan's reply carries the first segment
    for row in given:
        plan = plans[row["task_id"], row["plan_index"]]
        assert all(row[name] == plan[name] for name in ("queue_s", "compute_s", "batch_size", "step", "segment_index"))


@pytest.mark.ray
def test_a_run_of_a_joint_model_says_what_it_is_and_a_forbidden_mix_ends_it_at_once(tmp_path: Path) -> None:
    """Over real processes: segments that start from the observation travel there, too."""
    synthetic.write(tmp_path / "weights", "tiny", "bfloat16", layout="block")
    run = tmp_path / "run"
    options = ("--config", tmp_path / "weights" / "config.yaml", "--task_suite", "fake", "--tasks", "0-1")
    options += ("--env.max_steps", 60, "--num_parallel", 2, "--video.mode", "none", "--output_dir", run)
    options += ("--use_actual_proprio", "true", "--max_segments_per_replan", 2, "--center_crop", "true")
    options += ("--temperature", 0.7, "--forbid_terminal_first_waypoint", "true")
    options += ("--replan_on_deviation", "true", "--deviation_threshold", 100)
    command = [sys.executable, "-m", "wpray.launch", *map(str, (*options, "--center_crop_scale", 0.9))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    info = json.loads((run / "run.json").read_text())
    found = info["policy_sources"]["models"]
    assert found == {
        "layout": "joint",
        "planner": "block_ar",
        "token_layout": "bins300",
        "duration": "token",
        "lm_head_precision": "bfloat16",
    }
    assert info["policy_sources"]["joint_checkpoint"]["chosen_because"] == "the only one"
    named = {"center_crop", "use_actual_proprio", "max_segments_per_replan", "temperature", "replan_on_deviation"}
    assert named < info["outcome_fields"].keys()
    rows = pq.read_table(run / "decisions.parquet").to_pylist()
    assert {row["waypoint_index"] for row in rows if row["kind"] == "segment"} == {0, 1}
    assert {len(waypoint) for row in rows if row["kind"] == "plan" for waypoint in row["waypoints"]} == {8}
    _diagnosed(rows)

    mixed = [*command, "--token_layout", "bins256"]
    mixed[mixed.index(str(run))] = str(tmp_path / "mixed")
    done = subprocess.run(mixed, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "contradictory" in done.stderr
    assert "Traceback" not in done.stderr


def _diagnosed(rows: list[dict[str, Any]]) -> None:
    """Each plan says why it ended, each segment where it was to end and where it did."""
    for row in rows:
        if row["kind"] == "plan":
            assert row["plan_end"] in ("segment_limit", "zero_duration", "used_up", "step_budget", "success")
            assert row["skipped_waypoints"] == 0
            assert 0 < row["planner_s"] <= row["compute_s"]
            assert row["expert_s"] is None and row["planned_state"] is None
            assert row["durations"][0] > 0
            continue
        assert row["planner_s"] is None and row["plan_end"] is None
        assert 0 < row["expert_s"] <= row["compute_s"]
        assert 0 < row["steps_executed"] <= row["duration"]
        assert len(row["planned_state"]) == len(row["reached_state"]) == len(row["tracking_error"]) == 7
        assert row["planned_open"] == (row["planned_state"][6] == 1.0)
        assert row["reached_open"] == (row["reached_state"][6] == 1.0)
    assert rows
