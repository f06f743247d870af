"""What the READMEs say works: links lead somewhere, commands and options exist, examples run."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
from pathlib import Path

import pytest

from wpray.__main__ import dispatch
from wpray.benchmarks.factory import list_tasks, make_environment
from wpray.config import Config
from wpray.policies.factory import build_policy
from wpray.policies.local import LocalPolicyClient
from wpray.rollout import run_trial
from wpray.types import Trial

ROOT = Path(__file__).parent.parent
READMES = sorted(
    path
    for pattern in ("README.md", "*/README.md", "*/*/README.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith(".")
)
COMMAND = re.compile(r"(?:python -m wpray\.|bootstrap\.sh (?!launch|test))([a-z_.]+)([^`#\n]*(?:\\\n[^`#\n]*)*)")
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w.-]*")


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def _python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(path: Path) -> set[str]:
    """Names of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def _help(command: str, policy: str | None = None) -> str:
    """What `wpray COMMAND [--policy NAME] --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        if command == "models.synthetic":
            pytest.importorskip("torch")
            importlib.import_module("wpray.models.synthetic").main(["--help"])
        else:
            dispatch([command, *(["--policy", policy] if policy else []), "--help"])
    return printed.getvalue()


def test_the_first_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_readme_is_linked_from_the_first() -> None:
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())}
    assert not {path for path in READMES if path.parent != ROOT} - linked


@pytest.mark.parametrize("path", READMES, ids=_id)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", _prose(path)):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


@pytest.mark.parametrize("path", READMES, ids=_id)
def test_commands_have_the_options_that_are_named(path: Path) -> None:
    for command, rest in COMMAND.findall(path.read_text()):
        if command in ("node", "setup"):
            continue
        if command == "bench":  # its own commands import what their machine may lack
            assert all(f"wpray.bench {name} " in _help("bench") for name in rest.split()[0].split("\\|")), rest
            continue
        shown = _help(command, *re.findall(r"--policy (\w+)(?=\s)", rest)[:1])
        unknown = [option for option in OPTION.findall(rest) if f"{option} " not in shown]
        assert not unknown, f"{command}{rest}"


@pytest.mark.parametrize("path", READMES, ids=_id)
def test_options_that_the_prose_names_are_those_of_a_run(path: Path) -> None:
    for code in re.findall(r"`(--[^`]+)`", _prose(path)):
        for option in OPTION.findall(code):
            assert any(f"{option} " in _help(command) for command in ("launch", "doctor", "compare", "sweep")), code


@pytest.mark.parametrize("path", READMES, ids=_id)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"(?:bash|--config|ray up|docker build -f) ((?:configs|cluster)/[\w./]+)", path.read_text()):
        assert (ROOT / name).is_file(), name


def test_the_example_policy_runs_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = next(block for block in _python_blocks() if "class MyPolicy" in block)
    (tmp_path / "readme_lab").mkdir()
    (tmp_path / "readme_lab" / "policy.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = LocalPolicyClient(build_policy(Config(policy="readme_lab.policy:MyPolicy", task_suite="fake")))
    task = list_tasks("fake", None)[0]
    result = run_trial(make_environment("fake", "wpray"), policy, Trial(task, 0, 0))
    assert (result.num_chunks or 0) > 1 and {decision.kind for decision in result.decisions} == {"chunk"}


def test_the_example_query_reads_the_recorded_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    monkeypatch.chdir(ROOT)
    *lines, last = next(block for block in _python_blocks() if "duckdb" in block).splitlines()
    names: dict[str, object] = {}
    exec("\n".join([*lines, f"found = ({last.partition('#')[0]})"]), names)
    assert names["found"].shape[1] == 3  # type: ignore[attr-defined]
    assert "task_name" in capsys.readouterr().out


def test_the_test_files_that_the_tests_readme_names_exist() -> None:
    text = (ROOT / "tests" / "README.md").read_text()
    named = re.findall(r"`((?:[a-z_]+/)*test_[a-z_]+\.py)", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
