"""A policy of another package, installed beside wpray: found by the name of its entry point and run by the command."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from wpray.results import load

pytestmark = pytest.mark.ray
SOURCE = '''
"""A policy that is not of wpray."""

import numpy as np
from pydantic import BaseModel, Field

from wpray.policies.base import PolicySpec
from wpray.types import ChunkReply


class DownPolicy:
    class Settings(BaseModel):
        speed: float = Field(0.5, gt=0, le=1, description="share of the full command")

    @classmethod
    def spec_of(cls, settings):
        return PolicySpec("down", True, False, num_gpus=0, max_batch_size=4, kind="chunk", execute_steps=5)

    def __init__(self, settings):
        self.command = np.array([0, 0, -settings.speed, 0, 0, 0, -1.0])

    def predict(self, requests):
        return [ChunkReply(np.tile(self.command, (10, 1))) for _ in requests]
'''
ENTRIES = "[wpray.policies]\nlab_down = downward_lab.policies:DownPolicy\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which pip has installed a package from its wheel."""
    folder = tmp_path_factory.mktemp("lab")
    wheel = _wheel(folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        folder / "site",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


def _wheel(folder: Path) -> Path:
    path, info = folder / "downward_lab-1.0-py3-none-any.whl", "downward_lab-1.0.dist-info"
    files = {
        "downward_lab/__init__.py": "",
        "downward_lab/policies.py": SOURCE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: downward-lab\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": ENTRIES,
    }
    lines = [f"{name},sha256={_digest(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip("=")


def _launch(site: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wpray.launch", "--task_suite", "fake", "--tasks", "0", "--video.mode", "none"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([*command, *options], cwd=folder, env=environ, capture_output=True, text=True, timeout=300)


def test_it_runs_from_the_command_to_the_tables(site: Path, tmp_path: Path) -> None:
    options = ("--policy", "lab_down", "--policy_args.speed", "0.25", "--num_parallel", "1", "--output_dir", "run")
    done = _launch(site, tmp_path, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    run = load(tmp_path / "run")
    assert run.episodes["policy"].to_pylist() == ["lab_down"] and run.episodes["num_chunks"].to_pylist()[0] > 1
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["policy_settings"] == {"speed": 0.25} and info["outcome_fields"]["policy_args.speed"] == 0.25
    assert info["policy_spec"]["kind"] == "chunk" and info["policy_spec"]["execute_steps"] == 5
    assert info["versions"]["policy"] == "downward-lab 1.0" and "benchmark" not in info["versions"]
    other = _launch(site, tmp_path, *options[:3], "0.75", *options[4:])
    assert other.returncode == 2 and "policy_args.speed (0.25 there, 0.75 here)" in other.stderr


def test_its_mistakes_and_its_help_are_those_of_any_policy(site: Path, tmp_path: Path) -> None:
    wrong = _launch(site, tmp_path, "--policy", "lab_down", "--policy_args.speed", "2")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    assert "policy_args.speed: Input should be less than or equal to 1, not" in wrong.stderr
    assert "did you mean lab_down?" in _launch(site, tmp_path, "--policy", "lab_dwn").stderr
    assert "--policy_args.speed float" in _launch(site, tmp_path, "--policy", "lab_down", "--help").stdout
