"""The structure holds: imports point one way, packages stay where they belong, functions stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wpray"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which rooms (or modules at the top) a room may import, itself always. A module named here has a rule of its own,
# because it is narrower, or wider, than that of its room: the longest name that fits counts.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "config": {"benchmarks.base", "benchmarks.factory", "benchmarks.names", "registry", "system.paths"},
    "trials": {"errors", "types"},
    "registry": {"errors"},
    "tracking": {"types"},
    "rollout": {"types", "errors", "tracking", "benchmarks.base", "benchmarks.views", "policies.base"},
    "system": {"errors"},
    "benchmarks": {"types", "errors", "checks", "trials", "system", "registry"},
    "checks": {"errors"},
    "models": {"errors", "system.lfs"},
    "models.synthetic": {"errors", "models", "cli"},  # a command
    "policies": {"types", "errors", "checks", "config", "trials", "tracking", "models", "system", "registry"},
    "policies.base": {"types", "checks"},
    "policies.waypoint_vla.statistics_file": {"errors", "benchmarks.base", "benchmarks.factory", "system.lfs"},
    "policies.pi0.spec": {"config", "policies", "system.paths", "models.config", "types"},
    "policies.pi0.synthetic": {"errors", "types", "models", "policies.pi0", "cli"},  # a command
    "policies.process.worker": set(),  # another Python runs it, which has no wpray
    "policies.waypoint_vla.spec": {"config", "errors", "policies.base", "policies.waypoint_vla.flat_settings"},
    "policies.waypoint_vla.flat_settings": {"config"},  # for its type: the configuration reads this module
    "testing": {"", "types", "errors", "config", "benchmarks", "cli", "models", "policies", "results.atomic"},
    "storage": {"errors", "system"},
    "provenance": {"errors", "config", "benchmarks", "policies.factory", "registry", "system.packages"}
    | {"system.cache_folder"},
    "provenance.record": {"benchmarks.factory", "system.packages"},
    "results": {"types", "errors", "config", "provenance.record", "provenance.settings", "storage"}
    | {"system.cache_folder"},
    "cli": {"types", "errors", "config", "system", "results", "storage"},
    "cli.policy_args": {"cli.parser", "errors", "policies", "registry"},  # once `--help` asks for a policy's settings
    "cluster": {"types", "errors", "config", "system", "benchmarks", "provenance"},
    "cluster.process_env": {"system.one_thread"},  # imported before everything that reads the environment
    "transport": {
        "types",
        "errors",
        "system",
        "policies.base",
        "policies.batching",
        "policies.request_queue",
        "policies.relay",
        "benchmarks.base",
        "cluster.gather",
    },
    "orchestration": {
        "types",
        "errors",
        "config",
        "rollout",
        "tracking",
        "benchmarks",
        "policies",
        "provenance",
        "results",
    }
    | {"cluster", "transport", "system"},
    "orchestration.scheduler": {"types"},
    "orchestration.loop_options": {"config", "rollout", "tracking"},  # wpray.serve reads it: no Ray
    "orchestration.stop_rules": {"types", "config", "results.statistics"},
    "trackers": {"errors", "registry", "system.threads", "results"},
    "report": {"types", "errors", "results", "cli"},
    "compare": {"errors", "results", "cli"},
    "table": {"types", "errors", "config", "provenance.settings", "results", "cli"},
    "soup": {"", "errors", "models.averaging", "provenance.record", "cli"},
    "dataset_stats": {"types", "errors", "system", "results.atomic", "cli"},
    "dataset_stats.rlds": {"types", "errors", "system.lfs"},
    "export": {"types", "errors", "results", "benchmarks", "cli", "cluster", "video"},
    "video": {"types", "errors", "config", "benchmarks", "results", "cli", "cluster", "orchestration"},
    "video.selection": {"types"},
    "video.frames": {"types", "errors", "benchmarks.base", "results"},
    "jobs": {"errors", "config", "system", "provenance.record", "cluster.process_env"},
    "doctor": {"types", "errors", "checks", "config", "trials", "rollout", "system", "benchmarks", "models", "policies"}
    | {"provenance", "registry", "storage", "results", "cli", "cluster", "trackers.factory"},
    "serve": {"types", "errors", "config", "rollout", "tracking", "policies", "system", "cli"}
    | {"orchestration.loop_options", "benchmarks.views"},
    "run": {"types", "errors", "config", "trials", "system", "benchmarks", "policies", "provenance", "storage"}
    | {"results", "cli", "cluster", "orchestration", "report", "video", "doctor", "trackers"},
    "sweep": {
        "types",
        "errors",
        "checks",
        "config",
        "system",
        "benchmarks",
        "policies",
        "provenance.settings",
        "storage",
    }
    | {"results", "cli", "cluster", "doctor", "models.header", "report", "run"},
}
# Commands, and what puts a whole run together: may import anything.
AT_THE_TOP = {"", "__main__", "launch", "bench", "jobs.remote"}
ONLY_IN = {
    "torch": (
        "benchmarks.init_states_file",
        *("models", "policies.waypoint_vla.policy", "policies.waypoint_vla.plans_under_way"),
        *("policies.pi0.policy", "policies.pi0.model"),
        *("benchmarks.libero", "doctor"),
        *("testing.golden", "bench.policy", "bench.pi0", "bench.policy_layouts", "bench.policy_rates", "bench.share"),
    ),
    "transformers": ("policies.pi0.model", "policies.pi0.synthetic"),
    "tokenizers": ("policies.pi0.preparation", "policies.pi0.synthetic"),
    "huggingface_hub": ("policies.pi0.checkpoint",),
    "triton": ("models.kernels", "models.decode_kernel", "models.row_kernels"),
    "mujoco": (
        "benchmarks.libero",
        "benchmarks.libero_plus.camera",
        "system.gl",
        "bench.env",
        "bench.env_subjects",
        "bench.share_load",
        "doctor",
        "video",
    ),
    "robosuite": ("benchmarks.libero", "bench.env", "bench.env_subjects", "doctor"),
    "tensorflow": ("dataset_stats.rlds",),
    "tensorflow_datasets": ("dataset_stats.rlds",),
    "ray": (
        *(
            "cluster",
            "orchestration.actors",
            "orchestration.env_actor_pool",
            "orchestration.policy_actor_pool",
            "orchestration.render_actor_pool",
            "orchestration.serving_actor_pool",
            "orchestration.live_policy",
        ),
        *("transport.replica_selection", "video.pool", "video.render", "jobs", "doctor.cluster"),
    ),
    "fsspec": ("storage.store",),
    "requests": ("jobs.client",),
    "aiohttp": ("jobs.follow",),
    "pydantic": (
        "config",
        "cli.configuration",
        "video.options",
        "results.declarations",
        "policies.factory",
        "policies.settings",
        "policies.scripted.policy",
        "policies.remote",
        "policies.process.policy",
        "policies.pi0.spec",
    ),
    "matplotlib": (),
    "msgpack": ("policies.remote", "policies.process.worker"),
    "websockets": ("policies.remote", "serve"),
    "wandb": ("trackers.to_wandb",),
    "trackio": ("trackers.to_trackio",),
    "mlflow": ("trackers.to_mlflow",),
    "tensorboardX": ("trackers.to_tensorboard",),
    "zmq": ("policies.remote.gr00t_channel",),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {_name(path) for path in FILES}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {_imported(node.module, alias.name) for alias in node.names}
    return found


def _imported(module: str, name: str) -> str:
    """The module that `from module import name` needs: `name` itself if that is one of ours."""
    return f"{module}.{name}" if f"{module}.{name}".removeprefix("wpray.") in MODULES else module


def _ours(path: Path) -> set[str]:
    return {used.removeprefix("wpray.") for used in _imports(path) if used.startswith("wpray.")}


def _within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def test_the_table_is_of_the_rooms_that_there_are() -> None:
    assert not (ALLOWED.keys() | AT_THE_TOP) - MODULES
    unknown = {name for name in MODULES if not _within(name, ALLOWED) and not _within(name, AT_THE_TOP)}
    assert not unknown, f"say in ALLOWED what {sorted(unknown)} may import"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    name = _name(path)
    part = max((known for known in ALLOWED if _within(name, [known])), key=len, default=None)
    if part is None or name in AT_THE_TOP:
        return
    wrong = {used for used in _ours(path) if not _within(used, ALLOWED[part] | {part})}
    assert not wrong, f"{name} must not import {sorted(wrong)}"


def _room(name: str) -> str:
    """The folder of a module under wpray/, or the module itself if it stands at the top."""
    return name.split(".")[0]


def test_no_two_rooms_import_each_other_by_any_way() -> None:
    rooms: dict[str, set[str]] = {}
    for path in FILES:
        name = _name(path)
        if not _within(name, AT_THE_TOP | {"models.synthetic", "policies.pi0.synthetic"}):
            rooms.setdefault(_room(name), set()).update({_room(used) for used in _ours(path)} - {_room(name)})
    TopologicalSorter(rooms).prepare()


def test_no_two_modules_import_each_other_by_any_way() -> None:
    files = {_name(path): path for path in FILES}
    TopologicalSorter({name: _ours(path) & files.keys() - {name} for name, path in files.items()}).prepare()


def _compared(tree: ast.AST) -> Iterable[str]:
    """Texts that code compares with, searches for or cuts off."""
    methods = {"startswith", "endswith", "removeprefix", "removesuffix", "replace", "compile", "match", "fullmatch"}
    for node in ast.walk(tree):
        is_search = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods
        if is_search or isinstance(node, ast.Compare | ast.MatchValue | ast.MatchMapping):
            yield from (part.value for part in ast.walk(node) if _is_text(part))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("path", [path for path in FILES if _room(_name(path)) != "benchmarks"], ids=_name)
def test_no_code_outside_the_benchmarks_branches_on_the_name_of_one(path: Path) -> None:
    named = [text for text in _compared(ast.parse(path.read_text())) if "libero" in text.lower() or text == "fake"]
    assert not named


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
    exempt = {"system.threads", "policies.process.worker"}  # the latter stands alone, and its thread ends the process
    assert _name(path) in exempt or not started & {"threading.Thread", "Thread", "threading.Timer", "Timer"}
