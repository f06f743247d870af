"""The structure holds: imports point one way, packages stay where they belong, functions stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wpray"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which parts of wpray a part may import, itself always; the longest name that fits a module counts.
ALLOWED = {
    # leaves: know nothing of the rest
    "errors": set(),
    "lfs": {"errors"},
    "watched": {"errors"},
    "types": set(),
    "paths": set(),
    "suites": set(),
    "unique_yaml": set(),
    "config": {"paths", "suites"},
    "hardware": set(),
    "planning": set(),
    "provenance": set(),
    "file_digests": set(),
    "origins": {"errors", "provenance", "file_digests", "envs.factory", "envs.libero_import"},
    "quiet_ray": set(),
    "asking": set(),
    "cluster_probe": set(),
    "private_folder": {"errors"},
    "ray_folder": {"private_folder"},
    "command": {"errors"},
    "arguments": {"errors", "paths", "storage.url"},
    "config_cli": {"config", "errors", "paths", "unique_yaml"},
    "rotation": {"types"},
    "images": {"types"},
    "trials": {"types", "errors"},
    # what an episode is made of: no Ray
    "rollout": {"types", "envs.base", "policy.base", "errors", "images"},
    "models": {"errors", "command", "config_cli", "arguments", "lfs"},
    "envs": {"types", "errors", "config", "rotation", "images", "suites", "private_folder"},
    "policy": {"types", "errors", "config", "models", "lfs", "watched"},
    # what is kept of it
    "storage": {"errors", "paths", "watched"},
    "results": {"types", "errors", "config", "provenance", "storage"},
    # what runs it on many machines
    "scheduler": {"types"},
    "stopping": {"types", "config", "results.statistics"},
    "transport": {"types", "errors", "policy.base", "policy.batching", "watched"},
    "balance": {"asking", "transport"},
    "node_versions": {"asking", "envs.factory", "errors", "origins", "provenance"},
    "cluster_setup": {"types", "errors", "config", "envs.factory", "hardware", "quiet_ray", "asking", "suites"}
    | {"cluster_probe", "ray_folder"},
    "actors": {"errors", "config", "envs", "policy", "provenance", "results.encode", "rollout", "scheduler"}
    | {"transport", "balance", "node_versions"},
    "events": {"errors", "actors", "asking", "policy.base", "scheduler"},
    "pool": {"actors", "cluster_setup", "events", "scheduler", "stopping"},
    "replicas": {"errors", "actors", "asking", "cluster_setup", "events", "stopping"},
    "recorder": {"types", "errors", "config", "results", "stopping"},
    "driver": {
        "types",
        "errors",
        "policy.base",
        "results",
        "actors",
        "cluster_setup",
        "events",
        "pool",
        "recorder",
        "replicas",
    }
    | {"scheduler", "stopping", "transport"},
    "display": {"types", "results"},
    "output": {"config", "errors", "origins", "provenance", "actors", "results", "storage"},
    # the driver elsewhere
    "jobs.names": set(),
    "jobs.manifest": {"errors", "provenance"},
    "jobs.fetch": {"errors", "paths", "provenance", "jobs.manifest"},
    "jobs.package": {"config", "provenance"},
    "jobs.client": {"errors", "jobs.package", "quiet_ray"},
    "jobs.follow": {"errors", "jobs.client"},
    "jobs.submit": {"config", "errors", "paths", "jobs"},
    # who reads results
    "report": {"types", "errors", "results", "arguments", "config_cli", "command"},
    "compare": {"errors", "results", "arguments", "config_cli", "command"},
    "export.statistics": {"types"},
    "export.lerobot": {"types", "errors", "results", "rotation", "export.statistics"},
    "video.choose": set(),
    "video.encode": {"types"},
    "video.frames": {"types", "errors", "envs.base", "results"},
    "video.crew": {"config", "actors", "cluster_setup", "envs.factory", "events", "video.encode", "video.frames"},
    "video.render": {"types", "errors", "config", "cluster_setup", "results", "video"},
    "video.options": {"arguments", "config", "config_cli", "errors", "results"},
    "rlds": {"types", "errors", "lfs"},
    "dataset_stats": {"types", "errors", "rlds", "results.atomic", "arguments", "config_cli", "command"},
}
# Commands, and what puts a whole run together: may import anything.
AT_THE_TOP = {"", "__main__", "launch", "evaluation", "machine", "plan_run", "doctor", "bench", "jobs.remote"}
AT_THE_TOP |= {"jobs", "export", "export.__main__", "video", "video.__main__"}
ONLY_IN = {
    "torch": ("models", "policy.waypoint_vla", "bench.policy", "envs", "doctor"),
    "triton": ("models.kernels", "models.decode_kernel", "models.row_kernels"),
    "mujoco": ("envs", "bench.env", "bench.env_subjects", "doctor", "video"),
    "robosuite": ("envs", "bench.env", "bench.env_subjects", "doctor"),
    "tensorflow": ("rlds",),
    "tensorflow_datasets": ("rlds",),
    "ray": (
        *("actors", "asking", "balance", "cluster_setup", "node_versions", "pool", "replicas"),
        *("video.crew", "video.render", "jobs", "doctor.cluster", "bench.driver_cost"),
    ),
    "fsspec": ("storage.store",),
    "requests": ("jobs.client",),
    "aiohttp": ("jobs.follow",),
    "pydantic": ("config", "config_cli", "video.options"),
    "matplotlib": ("bench.scale_plot",),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _ours(path: Path) -> set[str]:
    return {used.removeprefix("wpray.") for used in _imports(path) if used.startswith("wpray.")}


def _within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def test_the_table_is_of_the_parts_that_there_are() -> None:
    names = {_name(path) for path in FILES}
    assert not (ALLOWED.keys() | AT_THE_TOP) - names
    unknown = {name for name in names if not _within(name, ALLOWED) and not _within(name, AT_THE_TOP)}
    assert not unknown, f"say in ALLOWED what {sorted(unknown)} may import"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    name = _name(path)
    part = max((known for known in ALLOWED if _within(name, [known])), key=len, default=None)
    if part is None:
        return
    wrong = {used for used in _ours(path) if not _within(used, ALLOWED[part] | {part})}
    assert not wrong, f"{name} must not import {sorted(wrong)}"


def test_no_two_modules_import_each_other_by_any_way() -> None:
    files = {_name(path): path for path in FILES}
    TopologicalSorter({name: _ours(path) & files.keys() - {name} for name, path in files.items()}).prepare()


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_packages_stay_where_they_belong(path: Path) -> None:
    name = _name(path)
    used = {module.split(".")[0] for module in _imports(path)}
    wrong = [package for package, parts in ONLY_IN.items() if package in used and not _within(name, parts)]
    assert not wrong, f"{name} must not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= 50, f"{node.name} has {size} lines"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_thread_that_dies_is_noticed(path: Path) -> None:
    """The module says of every thread what notices its end."""
    started = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert _name(path) == "watched" or not started & {"threading.Thread", "Thread", "threading.Timer", "Timer"}
