"""Scenes of LIBERO-plus's own: other lights, textures and objects, from the assets that its authors publish apart.

What LIBERO's code lacks of them is read from the package's source: which file and styles a problem's class names, the
files of the styles, and the classes of the objects.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from wpray.benchmarks.base import DecisivePackage
from wpray.benchmarks.libero import imports
from wpray.benchmarks.libero.imports import load
from wpray.benchmarks.libero_plus.package import INSTALL, package_root
from wpray.benchmarks.libero_plus.suites import OF_BASE_ASSETS, PLUS
from wpray.errors import BadInputError
from wpray.system.packages import PackageSource, files_below

SETTING = "LIBERO_PLUS_ASSET_PATH"  # environment variable: the folder `assets` of LIBERO-plus's data set
_CLASS = re.compile(r"^class (\w+)\((\w+)\):\n(.*?)(?=^@register_problem|^class |\Z)", re.MULTILINE | re.DOTALL)
_PROBLEM = re.compile(r"\(\s*problem\s+(\S+?)\s*\)", re.IGNORECASE)
_PUBLISHED = "its authors publish them as assets.zip of the data set Sylvest/LIBERO-plus"


class _Problem(NamedTuple):
    """A problem's class in the package's source."""

    name: str
    base: str
    values: dict[str, str]  # scene_xml, floor_style and wall_style, as far as it sets them


def assets_root() -> Path | None:
    """Return the folder of assets that the environment names; None if it names none."""
    named = os.environ.get(SETTING)
    return Path(os.path.abspath(os.path.expanduser(named))) if named else None


def asset_roots() -> dict[str, Path]:
    """Return the folders whose files scenes name: LIBERO's, robosuite's, and LIBERO-plus's if there is one."""
    own = assets_root()
    return {**({} if own is None else {"libero_plus": own}), **imports.asset_roots()}


def check_assets(suite: str, category: str) -> None:
    """Raise BadInputError if a category needs assets that are not there."""
    root = assets_root()
    if category in OF_BASE_ASSETS:
        return
    if root is None:
        raise BadInputError(
            f"task_suite: {suite} needs textures and objects that no package holds ({_PUBLISHED}); set the environment "
            f"variable {SETTING} to their folder, or use {PLUS}:{','.join(OF_BASE_ASSETS)}"
        )
    needed = root / ("new_objects" if category == "layout" else "scenes")
    if not needed.is_dir():
        raise BadInputError(f"{SETTING}: {root} has no folder {needed.name}, which {suite} needs; {_PUBLISHED}")


def decisive_assets() -> Iterator[DecisivePackage]:
    """Yield the assets, if there are any."""
    if (root := assets_root()) is not None:
        yield DecisivePackage(f"{PLUS} assets", PackageSource("path", root, None), files_below(root))


def prepare_scene(bddl: Path, category: str) -> None:
    """Let LIBERO's code compile what a BDDL file of the category describes. Raises BadInputError for lacking files."""
    if category in OF_BASE_ASSETS:
        return
    root = assets_root()
    if root is None:
        raise BadInputError(
            f"{SETTING} is not set in this process, and {bddl.name} needs its assets; set it there, too"
        )
    if category == "layout":
        _register_objects(root)
        return
    found = _PROBLEM.search(bddl.read_text(encoding="utf-8"))
    _register_problem(root, found[1].lower() if found else "")


def _register_problem(root: Path, name: str) -> None:
    """Add a class of the problem's name to LIBERO's, which has the scene and the styles that the package gives it."""
    known = load("libero.libero.envs").TASK_MAPPING
    if name in known:
        return
    problem, problems = _problems().get(name), _problems()
    if problem is None or problem.base.lower() not in known:
        raise BadInputError(f"LIBERO-plus: the package has no problem {name!r} that varies one of LIBERO's; {INSTALL}")
    values = problems[problem.base.lower()].values | problem.values
    scene = root / values["scene_xml"]
    if not scene.is_file():
        raise BadInputError(f"{SETTING}: {scene} is missing; {_PUBLISHED}")
    _add_styles()
    samplers = load("libero.libero.envs.regions").REGION_SAMPLERS
    samplers[name] = samplers[problem.base.lower()]
    styles = {part: values[part] for part in ("floor_style", "wall_style")}
    stock = known[problem.base.lower()]

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, *args, **kwargs, scene_xml=str(scene), scene_properties=dict(styles))

    known[name] = type(problem.name, (stock,), {"__init__": initialize})


@cache
def _problems() -> dict[str, _Problem]:
    """Return the problems' classes by their name in lower case."""
    found: dict[str, _Problem] = {}
    for path in sorted((package_root() / "envs" / "problems").glob("libero_*.py")):
        for name, base, body in _CLASS.findall(path.read_text(encoding="utf-8")):
            values = dict(re.findall(r'"(scene_xml|floor_style|wall_style)": "([^"]+)"', body))
            found[name.lower()] = _Problem(name, base, values)
    return found


@cache
def _add_styles() -> None:
    """Add the package's names of textures to LIBERO's, which keep their meaning."""
    mapping = load("libero.libero.envs.arenas.style").STYLE_MAPPING
    source = ast.parse((package_root() / "envs" / "arenas" / "style.py").read_text(encoding="utf-8"))
    for node in source.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            part, _, kind = node.targets[0].id.lower().partition("_")
            if kind == "style" and part in mapping:
                mapping[part].update(ast.literal_eval(node.value) | mapping[part])


@cache
def _register_objects(root: Path) -> None:
    """Run the package's module of objects, which registers them, with LIBERO's register and the files of `root`."""
    source = package_root() / "envs" / "objects" / "custom_objects.py"
    register = ModuleType("liberoplus.liberoplus.envs.base_object")
    register.register_object = load("libero.libero.envs.base_object").register_object  # type: ignore[attr-defined]
    parents = ("liberoplus", "liberoplus.liberoplus", "liberoplus.liberoplus.envs")
    stands_in = {name: ModuleType(name) for name in parents} | {register.__name__: register}
    before = {name: sys.modules.get(name) for name in stands_in}
    sys.modules.update(stands_in)
    try:
        # The module finds its files from its own place: assets/new_objects, beside the folder envs.
        place = root.parent / "envs" / "objects" / source.name
        exec(
            compile(source.read_text(encoding="utf-8"), str(source), "exec"),
            {"__name__": "objects", "__file__": str(place)},
        )
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
