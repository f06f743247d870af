"""Parts by name: built in, installed with an entry point, or by import path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wpray.errors import BadInputError
from wpray.registry import Registry

PARTS = Registry("policy", "wpray.policies", {"noop": "wpray.policies.noop", "floor": "wpray.policies.noop:NoopPolicy"})


def _install(folder: Path, owner: str, *entries: str) -> None:
    info = folder / f"{owner}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[wpray.policies]", *entries]))


def test_a_part_is_a_module_or_what_is_in_one() -> None:
    from wpray.policies import noop

    assert PARTS.load("noop") is noop
    assert PARTS.load("floor") is PARTS.load("wpray.policies.noop:NoopPolicy") is noop.NoopPolicy


def test_installed_parts_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, "lab", "dice = wpray.policies.random_policy:RandomPolicy", "noop = wpray.policies.random_policy")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert PARTS.load("dice").__name__ == "RandomPolicy"
    assert PARTS.load("noop").__name__ == "wpray.policies.noop"  # a built-in name counts first
    assert PARTS.names() == ("noop", "floor", "dice")
    with pytest.raises(BadInputError, match="did you mean dice"):
        PARTS.load("dise")


def test_two_packages_that_disagree_on_a_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path / "a", "lab_a", "dice = a.b:C", "same = wpray.policies.noop")
    _install(tmp_path / "b", "lab_b", "dice = b.b:C", "same = wpray.policies.noop")
    monkeypatch.syspath_prepend(str(tmp_path / "a"))
    monkeypatch.syspath_prepend(str(tmp_path / "b"))
    assert PARTS.load("same") is PARTS.load("noop")
    with pytest.raises(BadInputError, match="dice is installed by lab_a and lab_b"):
        PARTS.load("dice")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nop", "unknown policy 'nop'; did you mean noop?"),
        ("zzz", "unknown policy 'zzz'; use one of noop, floor"),
        ("wpray.policies.noop:NopPolicy", "wpray.policies.noop has no NopPolicy; did you mean NoopPolicy?"),
        ("wpray.policies.noop:", "which is no module's name"),
        (":NoopPolicy", "which is no module's name"),
        ("no_such_lab.policy:P", "No module named 'no_such_lab'"),
    ],
)
def test_what_is_not_there_is_one_line(name: str, hint: str) -> None:
    with pytest.raises(BadInputError) as caught:
        PARTS.load(name)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


_WITHOUT = """
import sys
from wpray.cli.command import run_command
sys.modules.update(dict.fromkeys(("msgpack", "websockets", "zmq")))  # as if they were not installed
from wpray.launch import main as launch
from wpray.serve.__main__ import main as serve
for policy in ("openpi", "vla_eval", "openvla_oft", "gr00t", "starvla", "process"):
    assert run_command(launch, ["--task_suite", "fake", "--policy", policy, "--plan"]) == 2
assert run_command(serve, ["--task_suite", "fake", "--policy", "noop"]) == 2
"""


_WITHOUT_TRANSFORMERS = """
import sys
from wpray.cli.command import run_command
sys.modules.update(dict.fromkeys(("transformers", "huggingface_hub", "tokenizers")))  # as if they were not installed
from wpray.launch import main as launch
assert run_command(launch, ["--task_suite", "fake", "--policy", "pi0", "--policy_args.checkpoint", "x"]) == 2
"""


def test_checks_of_a_policys_files_name_the_extra_that_they_need() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_TRANSFORMERS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith("pip install 'wpray[hf]'"), done.stderr


def test_a_policy_whose_packages_are_not_installed_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 7 and all(line.endswith("pip install 'wpray[remote]'") for line in lines), lines
