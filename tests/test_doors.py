"""Policies and benchmarks come through their registries: nothing outside a part's room branches on its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from wpray.benchmarks.factory import BENCHMARKS
from wpray.registry import POLICIES

PACKAGE = Path(__file__).parent.parent / "wpray"
# Modules that compare such a word because it means something else there.
EXEMPT = {
    "bench/__main__.py": "names of its own commands",
    "policies/waypoint_vla/statistics_file.py": "words of training data sets, which are named after LIBERO's suites",
}


def _room(target: str) -> str:
    """The folder of a part, or its file if it stands beside others: 'policies/scripted/', 'policies/noop.py'."""
    parts = target.partition(":")[0].split(".")[1:]
    return f"{'/'.join(parts[:2])}{'/' if len(parts) > 2 else '.py'}"


ROOMS = {name: _room(target) for registry in (POLICIES, BENCHMARKS) for name, target in registry.built_in.items()}
SUITES = sorted(BENCHMARKS.built_in, key=len, reverse=True)  # so that the longest name counts


def _name_in(text: object) -> str | None:
    """The part that a text names: a policy, a benchmark, or a suite, whose first word is its benchmark's name."""
    if not isinstance(text, str):
        return None
    return text if text in ROOMS else next((name for name in SUITES if text.startswith(f"{name}_")), None)


def _named(node: ast.AST, constants: dict[str, ast.expr]) -> set[str]:
    """The parts that an expression names itself or through the module's constants."""
    found: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and (name := _name_in(child.value)):
            found.add(name)
        elif isinstance(child, ast.Name) and child.id in constants:
            found |= _named(constants[child.id], {})
    return found


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None]
    targets = [(node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value) for node in assigned]
    return {target.id: value for target, value in targets if isinstance(target, ast.Name) and value is not None}


def _decisions(tree: ast.Module) -> Iterator[ast.AST]:
    """Comparisons, `startswith` and its like, cases of a match, and keys of a mapping."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "endswith", "fullmatch", "get"):
                yield from node.args[:1]
        elif isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)


def _is_at_home(path: str, name: str) -> bool:
    """Whether a module is in the part's room, or in that of a benchmark that varies it, as libero_plus does libero."""
    owners = [owner for owner, room in ROOMS.items() if path.startswith(room)]
    return any(owner == name or owner.startswith(f"{name}_") for owner in owners)


def _branches(path: str, source: str) -> set[str]:
    """Lines of a module that branch on the name of a part whose room it is not in."""
    tree = ast.parse(source)
    constants = _constants(tree)
    return {
        f"{path}:{getattr(node, 'lineno', 0)} {name}"
        for node in _decisions(tree)
        for name in _named(node, constants)
        if not _is_at_home(path, name)
    }


def test_nothing_branches_on_the_name_of_a_policy_or_a_benchmark_outside_its_room() -> None:
    found: set[str] = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if path not in {"registry.py", "benchmarks/factory.py", *EXEMPT}:
            found |= _branches(path, file.read_text())
    assert not found, "let the part declare what is needed of it, and read it through its registry"


@pytest.mark.parametrize(
    "branch",
    [
        'x = policy == "waypoint_vla"',
        'x = config.policy != "scripted" or y',
        'x = policy in ("noop", "random")',
        '_PHYSICAL = ("scripted",)\ndef f(policy): return policy in _PHYSICAL',
        'x = suite.startswith("libero_")',
        'x = {"waypoint_vla": 1}[policy]',
        'match suite:\n    case "libero_object":\n        pass',
    ],
)
def test_a_branch_is_found(branch: str) -> None:
    assert _branches("run/evaluation.py", branch)


def test_in_its_own_room_a_part_may_use_its_name() -> None:
    assert not _branches("policies/waypoint_vla/spec.py", 'x = policy == "waypoint_vla"')
    assert not _branches("policies/remote/openpi.py", 'x = policy == "openpi"')
    assert not _branches("benchmarks/libero/suites.py", 'x = suite == "libero_object"')
    assert not _branches("benchmarks/libero_plus/suites.py", 'x = suite == "libero_object"')
    assert _branches("benchmarks/libero/suites.py", 'x = suite == "libero_plus_goal_camera"')
