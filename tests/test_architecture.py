"""The structure holds: imports point one way, heavy packages stay where they belong, files and functions stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wpray"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which parts of wpray a part may import (itself always). Parts that are not listed may import anything.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "config": set(),
    "hardware": set(),
    "config_cli": {"config", "errors"},
    "trials": {"types", "errors"},
    "rollout": {"types", "envs.base", "policy.base", "errors"},
    "models": {"errors", "command"},
    "envs": {"types", "errors", "config", "rotation"},
    "policy": {"types", "errors", "config", "models"},
    "storage": {"errors"},
    "results": {"types", "errors", "config", "provenance", "storage"},
    "scheduler": {"types", "errors"},
    "planning": set(),
    "jobs.manifest": {"errors", "provenance"},
    "jobs.fetch": {"errors", "provenance", "jobs.manifest"},
    "jobs.package": {"config", "provenance"},
    "jobs.follow": {"errors", "jobs.client"},
    "jobs.submit": {"config", "errors", "jobs"},
    "report": {"types", "errors", "results", "config_cli", "command"},
    "rotation": {"types"},
    "export.statistics": {"types"},
    "export.lerobot": {"types", "errors", "results", "rotation", "export.statistics"},
    "video.choose": set(),
    "video.encode": {"types"},
    "video.frames": {"types", "errors", "envs.base", "results"},
}
HEAVY_ONLY_IN = {
    "torch": ("models", "policy.waypoint_vla", "bench.policy", "envs", "doctor"),
    "mujoco": ("envs", "bench.env", "doctor", "video"),
    "robosuite": ("envs", "bench.env", "doctor"),
    "tensorflow": ("rlds",),
    "tensorflow_datasets": ("rlds",),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _within(name: str, parts: set[str] | tuple[str, ...]) -> bool:
    return any(name == part or name.startswith((part + ".", part + "_")) for part in parts)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    name = _name(path)
    part = next((known for known in ALLOWED if name == known or name.startswith(known + ".")), None)
    if part is None:
        return
    ours = {used.removeprefix("wpray.") for used in _imports(path) if used.startswith("wpray.")}
    wrong = {used for used in ours if not _within(used, ALLOWED[part] | {part})}
    assert not wrong, f"{name} must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    name = _name(path)
    used = {module.split(".")[0] for module in _imports(path)}
    wrong = [heavy for heavy, parts in HEAVY_ONLY_IN.items() if heavy in used and not _within(name, parts)]
    assert not wrong, f"{name} must not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= 50, f"{node.name} has {size} lines"
