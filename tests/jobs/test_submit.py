"""A submission: what is sent to a cluster, what runs there, and how a job is followed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from wpray.cli.configuration import read_config
from wpray.cluster.process_env import passed_on
from wpray.config import Config
from wpray.errors import BadInputError, RunStoppedError
from wpray.jobs import follow, package, remote
from wpray.provenance import record

ROOT = Path(__file__).parents[2]
FAKE = ["--task_suite", "fake", "--policy", "noop"]


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--ray.submit", "head:8265"], "ray.submit: must be the dashboard's address, such as http://HEAD:8265"),
        (["--ray.submit", "ray://head:10001"], "must be the dashboard's address"),
        (["--ray.submit", "http://head:8265/jobs"], "must be the dashboard's address"),
        (["--ray.submit", "http://head:8265", "--ray.address", "ray://head:10001"], "leave address out"),
        (["--ray.job", "wpray-1"], "job needs submit"),
        (["--ray.submit", "http://head:8265", "--ray.job", "../x"], "ray.job"),
    ],
)
def test_contradictions_are_found_before_anything_is_contacted(argv: list[str], hint: str) -> None:
    with pytest.raises(BadInputError, match=hint):
        read_config([*FAKE, *argv])


def test_the_package_travels_as_it_is_with_its_commit_and_the_resolved_configuration(tmp_path: Path) -> None:
    config = read_config([*FAKE, "--seed", "7", "--ray.submit", "http://head:8265", "--ray.num_env_actors", "3"])
    package.pack(package.submission(config, "wpray-1", plan=False), tmp_path)
    shipped = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    files = [path for path in (ROOT / "wpray").rglob("*.*") if "__pycache__" not in path.parts]
    ours = {path.relative_to(ROOT).as_posix() for path in files}
    assert shipped - {"wpray/COMMIT"} == {*ours, "submission.json"}
    what = package.unpack(tmp_path)
    there = Config.model_validate(what.config)
    assert (there.seed, there.num_env_actors, there.ray.address, there.ray.submit) == (7, 3, "auto", None)
    done = subprocess.run(
        [sys.executable, "-c", "from wpray.provenance.record import git_commit; print(git_commit())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.strip() == str(record.git_commit())


def test_nothing_secret_is_passed_on() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "x", "HOME": "/h", "MUJOCO_GL": "egl", "OMP_NUM_THREADS": "2"}
    assert passed_on(environ) == {"MUJOCO_GL": "egl", "OMP_NUM_THREADS": "2"}


def test_relative_paths_start_at_the_home_directory_there() -> None:
    config = Config(vlm_checkpoint="models/vlm", ae_checkpoint="/data/ae", dataset_statistics_path="s.json")
    there = remote.from_home(config.model_copy(update={"output_dir": "s3://bucket/run"}), Path("/home/ray"))
    assert there.vlm_checkpoint == "/home/ray/models/vlm"
    assert (there.ae_checkpoint, there.tokenizer_path) == ("/data/ae", None)
    assert there.dataset_statistics_path == "/home/ray/s.json"
    assert there.output_dir == "s3://bucket/run"


def test_a_plan_is_made_there_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, job = tmp_path / "home", tmp_path / "job"
    home.mkdir()
    job.mkdir()
    package.pack(package.submission(read_config([*FAKE, "--num_trials_per_task", "7"]), "wpray-1", plan=True), job)
    monkeypatch.chdir(job)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("ray.init", None)
    assert remote.main() == 0
    said = capsys.readouterr().out
    assert re.search(r"episodes +70", said) and "bottleneck" in said
    assert Path.cwd() == home and not list(home.iterdir())


def test_results_are_offered_among_rays_logs_again_and_again(tmp_path: Path) -> None:
    folder, logs = tmp_path / "run", tmp_path / "logs"
    folder.mkdir()
    logs.mkdir()
    (folder / "run.json").write_text('{"run_id": "abc"}')
    for _ in range(2):
        remote.offer(folder, logs, "wpray-1")
    assert (logs / "wpray-1-results" / "run.json").read_text() == '{"run_id": "abc"}'
    assert json.loads((logs / "wpray-1-results.json").read_text())["run_id"] == "abc"


@pytest.mark.parametrize(
    ("status", "code", "expected", "reason"),
    [
        (JobStatus.SUCCEEDED, 0, 0, ""),
        (JobStatus.FAILED, 1, 1, ""),
        (JobStatus.FAILED, 2, 2, ""),
        (JobStatus.FAILED, -9, 1, "with exit code -9: it was killed"),
        (JobStatus.FAILED, None, 1, "without an exit code: it was killed"),
        (JobStatus.FAILED, 127, 1, "found no python"),
        (JobStatus.STOPPED, None, 1, "was stopped"),
    ],
)
def test_the_jobs_exit_code_is_the_commands(status: JobStatus, code: int | None, expected: int, reason: str) -> None:
    found = SimpleNamespace(status=status, driver_exit_code=code, message="it was\nkilled")
    got, said = follow.exit_code(found)  # type: ignore[arg-type]
    assert got == expected and reason in said and bool(said) == bool(reason)


class Cluster:
    """Job whose connections break. Each new one begins with the first character, as Ray's do."""

    TEXT = "INFO setting up\nRunning entrypoint for job x: python\nTask 0: SUCCESS\nTask 1: FAIL\nTask 2: SUCCESS\n"

    def __init__(self, cuts: list[int]) -> None:
        self._cuts = [*cuts, len(self.TEXT)]
        self._broken = 0

    async def tail_job_logs(self, job_id: str) -> Any:
        cut = self._cuts[self._broken]
        for start in range(0, cut, 7):
            yield self.TEXT[start : min(cut, start + 7)]
        if cut < len(self.TEXT):
            self._broken += 1
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        if self._broken == 2:
            raise ConnectionError("no route to host")
        done = self._broken == len(self._cuts) - 1
        return SimpleNamespace(status=JobStatus.SUCCEEDED if done else JobStatus.RUNNING)


def test_a_cluster_that_stays_silent_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_PAUSE_S", 0.01)
    monkeypatch.setattr(follow, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(Cluster, "get_job_info", _no_route)
    with pytest.raises(RunStoppedError, match="lost contact with the cluster"):
        follow.follow(Cluster([]), "wpray-1", [].append)  # type: ignore[arg-type]


def _no_route(cluster: Cluster, job_id: str) -> None:
    raise ConnectionError("no route to host")


def test_lost_connections_lose_and_repeat_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_PAUSE_S", 0.01)
    written: list[str] = []
    found = follow.follow(Cluster([20, 70, 71, 95]), "wpray-1", written.append)  # type: ignore[arg-type]
    assert found.status == JobStatus.SUCCEEDED
    assert "".join(written) == "Task 0: SUCCESS\nTask 1: FAIL\nTask 2: SUCCESS\n"
