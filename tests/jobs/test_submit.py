"""What is sent to a cluster, how a job is followed, and what is said when there is no cluster to send it to."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from wpray import provenance
from wpray.config import Config
from wpray.config_cli import read_config
from wpray.errors import BadInputError, RunStoppedError
from wpray.jobs import follow, package, remote
from wpray.jobs.submit import submit
from wpray.quiet_ray import passed_on

ROOT = Path(__file__).parents[2]
FAKE = ["--task_suite", "fake", "--policy", "noop"]


class Server(http.server.BaseHTTPRequestHandler):
    """Answers GET and POST from `replies`: path -> (status, body); everything else with 404."""

    replies: dict[str, tuple[int, str]]

    def do_GET(self) -> None:
        status, body = self.replies.get(self.path, (404, "not found"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    do_PUT = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, tuple[int, str]]]]:
    """The address of an HTTP server, and what it replies."""
    replies: dict[str, tuple[int, str]] = {}
    handler = type("Handler", (Server,), {"replies": replies})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", replies
        running.shutdown()


def _refused(*argv: str) -> str:
    with pytest.raises(BadInputError) as refused:
        submit(read_config([*FAKE, *argv]))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_where_nobody_listens_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")  # must not win over the configuration
    assert _refused("--ray.submit", "http://127.0.0.1:1").startswith(
        "ray.submit http://127.0.0.1:1: nobody answers as a Ray dashboard"
    )


def test_a_server_that_is_no_dashboard(server: tuple[str, dict[str, tuple[int, str]]]) -> None:
    address, replies = server
    assert "not a Ray dashboard" in _refused("--ray.submit", address)
    replies["/api/version"] = (200, "<html>a router</html>")
    assert "Ray dashboard" in _refused("--ray.submit", address)
    replies["/api/version"] = (200, "{}")
    assert "not a Ray dashboard" in _refused("--ray.submit", address)


def test_a_head_without_a_job_agent(server: tuple[str, dict[str, tuple[int, str]]]) -> None:
    address, replies = server
    replies["/api/version"] = (200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}))
    assert "the cluster did not take the job" in _refused("--ray.submit", address)  # takes no package
    replies["/api/jobs/"] = (500, "No available agent to submit job, please try again later.")
    said = _refused("--ray.submit", address)
    assert "ray[default]" in said
    assert "ray.job: the cluster knows no job nosuch" in _refused("--ray.submit", address, "--ray.job", "nosuch")


def test_a_workstation_without_the_client_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'wpray[cluster]'" in _refused("--ray.submit", "http://127.0.0.1:1")


def test_without_aiohttp_the_command_itself_says_so(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['aiohttp'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'aiohttp' else find(name, *a)\n" + blocked
    )
    done = subprocess.run(
        [sys.executable, "-m", "wpray.launch", *FAKE, "--ray.submit", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ray.submit needs") and "wpray[cluster]" in done.stderr


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
    ours = {f"wpray/{path.relative_to(ROOT / 'wpray').as_posix()}" for path in (ROOT / "wpray").rglob("*.*[!c]")}
    assert shipped - {"wpray/COMMIT"} == {*ours, "submission.json"}
    what = package.unpack(tmp_path)
    there = Config.model_validate(what.config)
    assert (there.seed, there.num_env_actors, there.ray.address, there.ray.submit) == (7, 3, "auto", None)
    done = subprocess.run(
        [sys.executable, "-c", "from wpray.provenance import git_commit; print(git_commit())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.strip() == str(provenance.git_commit())


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
    """A job whose connections break; each begins with the first character again, as Ray's do."""

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
