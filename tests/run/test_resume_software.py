"""A run resumes with the software that decides outcomes, or not at all; every session is recorded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.recorded import write_run
from wpray.benchmarks.fake.environment import fake_tasks
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.orchestration.actors import ACTOR_LOST, ActorHost, RunContext, lost_row
from wpray.orchestration.scheduler import Assignment
from wpray.policies.factory import policy_spec
from wpray.provenance import record
from wpray.provenance.origins import PackageOrigin
from wpray.results import load
from wpray.results.pairing import obstacles
from wpray.results.sessions import sessions
from wpray.run.output import RunInfo, choose_folder, opened
from wpray.types import Failure, Trial

SOFTWARE = {"wpray": "0.1.0", "mujoco": "3.3.2", "robosuite": "1.4.0", "libero": "libero 1", "numpy": "2.1.0"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


class Machine:
    """This machine, with other software."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def has(self, versions: Mapping[str, str], commit: str = "aaaa", digest: str | None = None) -> None:
        self._monkeypatch.setattr(record, "package_versions", lambda: dict(versions))
        self._monkeypatch.setattr(record, "git_commit", lambda: commit)
        found = {} if digest is None else {"libero": PackageOrigin("path", "path /x", digest)}
        for place in ("wpray.provenance.origins.origins", "wpray.run.output.origins"):
            self._monkeypatch.setattr(place, lambda *_: found)


def _run(config: Config, host: ActorHost | None = None, works: bool = True, renderer: str = "osmesa") -> RunInfo:
    """Run a session to its end."""
    with opened(choose_folder(config), config) as folder:
        info = RunInfo.read_or_new(config, folder, "r1", {"renderer": renderer}, works=works)
        info.save("running")
        info.add_hosts({"env-0": host or ActorHost("nodeA", 1, "osmesa", {})})
        info.save("stopped")
    return info


def _config(folder: Path) -> Config:
    return Config(task_suite="fake", output_dir=str(folder))


def _info(folder: Path) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return info


@pytest.mark.parametrize("name", ["mujoco", "robosuite", "libero"])
def test_another_simulator_is_refused_and_nothing_touched(name: str, tmp_path: Path, machine: Machine) -> None:
    machine.has(SOFTWARE)
    _run(_config(tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    machine.has(SOFTWARE | {name: "9.9"})
    refusal = rf"holds results of other software, which differs in: {name} \({SOFTWARE[name]} there, 9\.9 here\); "
    with pytest.raises(BadInputError, match=refusal):
        _run(_config(tmp_path / "run"))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_other_files_of_the_simulator_are_refused(tmp_path: Path, machine: Machine) -> None:
    machine.has(SOFTWARE, digest="1a" * 32)
    _run(_config(tmp_path))
    machine.has(SOFTWARE, digest="2b" * 32)
    with pytest.raises(BadInputError, match=r"libero files \(1a1a1a1a1a1a \(path /x\) there, 2b2b2b2b2b2b"):
        _run(_config(tmp_path))


def test_another_protocol_of_wprays_own_is_refused(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(SOFTWARE)
    _run(_config(tmp_path))
    monkeypatch.setattr(record, "PROTOCOL_VERSION", record.PROTOCOL_VERSION + 1)
    with pytest.raises(BadInputError, match=r"wpray protocol \(1 there, 2 here\)"):
        _run(_config(tmp_path))


def test_other_software_goes_on_by_name_as_a_session_of_its_own(tmp_path: Path, machine: Machine) -> None:
    machine.has(SOFTWARE, "aaaa")
    first = _run(_config(tmp_path), ActorHost("nodeA", 1, "osmesa", SOFTWARE))
    newer = SOFTWARE | {"numpy": "2.4.6", "wpray": "0.1.1"}
    machine.has(newer, "bbbb+dirty")
    second = _run(_config(tmp_path), ActorHost("nodeB", 1, "egl", newer), renderer="egl")
    assert first.changes == ()
    assert second.changes == (
        *("wpray 0.1.1 instead of 0.1.0", "numpy 2.4.6 instead of 2.1.0", "commit bbbb+dirty instead of aaaa"),
        "renderer egl instead of osmesa",
    )
    info = _info(tmp_path)
    one, two = info["sessions"]
    assert (first.session, second.session) == (0, 1)
    assert (one["versions"], one["git_commit"], list(one["hosts"])) == (SOFTWARE, "aaaa", ["nodeA"])
    assert (two["versions"], two["git_commit"], list(two["hosts"])) == (newer, "bbbb+dirty", ["nodeB"])
    assert one["started"] <= one["ended"] <= two["started"] <= two["ended"]
    assert (info["versions"], info["git_commit"], info["renderer"]) == (newer, "bbbb+dirty", "egl")  # the newest
    assert list(info["hosts"]) == ["nodeA", "nodeB"]


def test_a_process_without_episodes_is_no_session(tmp_path: Path, machine: Machine) -> None:
    machine.has(SOFTWARE, "aaaa")
    _run(_config(tmp_path))
    machine.has(SOFTWARE | {"numpy": "2.4.6"}, "bbbb")
    assert _run(_config(tmp_path), works=False, renderer="egl").session is None
    info = _info(tmp_path)
    assert len(info["sessions"]) == 1
    assert (info["versions"], info["git_commit"], info["renderer"]) == (SOFTWARE, "aaaa", "osmesa")


def test_a_run_that_is_older_than_sessions_can_be_resumed(tmp_path: Path, machine: Machine) -> None:
    machine.has(SOFTWARE)
    _run(_config(tmp_path), ActorHost("nodeA", 1, "osmesa", SOFTWARE))
    old = {name: v for name, v in _info(tmp_path).items() if name not in ("sessions", "origins", "wpray_protocol")}
    (tmp_path / "run.json").write_text(json.dumps(old))
    machine.has(SOFTWARE | {"mujoco": "3.4.0"})
    with pytest.raises(BadInputError, match=r"mujoco \(3\.3\.2 there, 3\.4\.0 here\)"):
        _run(_config(tmp_path))
    machine.has(SOFTWARE | {"numpy": "2.4.6"}, digest="1a" * 32)
    assert _run(_config(tmp_path)).changes == ("numpy 2.4.6 instead of 2.1.0",)
    first, second = _info(tmp_path)["sessions"]
    assert (first["started"], first["ended"]) == (old["started_at"], old["written_at"])
    assert (first["versions"], list(first["hosts"])) == (SOFTWARE, ["nodeA"])
    assert second["origins"]["libero"]["digest"] == "1a" * 32


@pytest.mark.parametrize("listed", [None, [], {}, [1], "x"])
def test_a_malformed_list_of_sessions_counts_as_one_session(listed: object) -> None:
    assert [session["versions"] for session in sessions({"sessions": listed, "versions": {"a": "1"}})] == [{"a": "1"}]


def test_an_unfinished_run_of_another_simulator_is_left_alone(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    machine.has(SOFTWARE)
    config = Config(task_suite="fake")
    _run(config)
    folder = choose_folder(config).path
    assert folder.exists()
    machine.has(SOFTWARE | {"mujoco": "9.9"})
    assert not choose_folder(config).path.exists()


def test_the_nodes_software_counts_where_the_driver_has_none(tmp_path: Path, machine: Machine) -> None:
    machine.has({"wpray": "0.1.0"})
    config, nodes = _config(tmp_path), {"wpray": "0.1.0", "mujoco": "3.3.2", "libero files": "1a (libero 1)"}
    with opened(choose_folder(config), config, nodes) as folder:
        RunInfo.read_or_new(config, folder, "r1", {}, nodes).save("stopped")
    for other in ({"mujoco": "3.4.0"}, {"libero files": "2b (libero 1)"}):
        with (
            pytest.raises(BadInputError, match=next(iter(other))),
            opened(choose_folder(config), config, nodes | other),
        ):
            pass
    with opened(choose_folder(config), config, nodes | {"libero files": "1a (path /x)"}):
        pass


def test_another_kind_of_gpu_is_logged_once(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("wpray"), "propagate", True)
    machine.has(SOFTWARE)
    _run(_config(tmp_path), ActorHost("nodeA", 1, None, SOFTWARE, "NVIDIA H100"))
    _run(_config(tmp_path), ActorHost("nodeB", 1, None, SOFTWARE, "NVIDIA H100"))
    assert not caplog.records
    info = _run(_config(tmp_path), ActorHost("nodeB", 1, None, SOFTWARE, "NVIDIA H200"))
    info.add_hosts({"policy-1": ActorHost("nodeB", 2, None, SOFTWARE, "NVIDIA H200")})
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("the policy on nodeB answers on NVIDIA H200, earlier on NVIDIA H100")
    assert [session["hosts"].popitem()[1]["gpu"] for session in _info(tmp_path)["sessions"]] == [
        *("NVIDIA H100", "NVIDIA H100", "NVIDIA H200")
    ]


def test_a_killed_session_has_no_end(tmp_path: Path, machine: Machine) -> None:
    machine.has(SOFTWARE)
    config = _config(tmp_path)
    with opened(choose_folder(config), config) as folder:
        RunInfo.read_or_new(config, folder, "r1", {}).save("running")
    assert [session["ended"] for session in _info(tmp_path)["sessions"]] == [None]


def test_rows_name_their_session() -> None:
    trial = Trial(fake_tasks()[0], 0, 0)
    for session in (3, None):
        config = Config(task_suite="fake")
        context = RunContext("r1", config, b"", session=session, spec=policy_spec(config))
        part = lost_row(context, Assignment(trial, 1, "env-0"), Failure("actor", ACTOR_LOST, "gone")).part
        assert pq.read_table(pa.BufferReader(part))["session"].to_pylist() == [session]


def test_a_run_goes_on_with_the_version_of_the_policys_package_that_began_it(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has(**parts: str) -> None:
        machine.has(SOFTWARE)
        for place in ("wpray.provenance.origins.part_versions", "wpray.run.output.part_versions"):
            monkeypatch.setattr(place, lambda *_: parts)

    has()  # as before such versions were recorded
    _run(_config(tmp_path / "run"))
    has(policy="my-lab 1.0", benchmark="reach 2")
    assert _run(_config(tmp_path / "run")).data["versions"]["policy"] == "my-lab 1.0"
    for parts, hint in (
        ({"policy": "my-lab 1.1", "benchmark": "reach 2"}, r"policy \(my-lab 1.0 there, my-lab 1.1 here\)"),
        ({"policy": "my-lab 1.0", "benchmark": "reach 3"}, r"benchmark \(reach 2 there, reach 3 here\)"),
    ):
        has(**parts)
        with pytest.raises(BadInputError, match=f"results of other software, which differs in: {hint}"):
            _run(_config(tmp_path / "run"))


def test_versions_of_one_policy_may_be_compared(tmp_path: Path) -> None:
    for name, version in (("a", "my-lab 1.0"), ("b", "my-lab 1.1")):
        write_run(tmp_path / name, [[True, True]], versions={"wpray": "0.1.0", "policy": version})
    assert obstacles(load(tmp_path / "a"), load(tmp_path / "b")) == []
    for name, version in (("c", "reach 2"), ("d", "reach 3")):
        write_run(tmp_path / name, [[True, True]], versions={"wpray": "0.1.0", "benchmark": version})
    assert obstacles(load(tmp_path / "c"), load(tmp_path / "d")) == ["benchmark (reach 2 in A, reach 3 in B)"]
