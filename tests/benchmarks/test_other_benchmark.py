"""A benchmark of another package, the one that the architecture's README shows, is installed and evaluated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wpray.results import load
from wpray.results.reader import matrix

ROOT = Path(__file__).parents[2]
_NAME = "wpray_reach-0.3"
_CHECK = """
from wpray.testing import check_benchmark
if __name__ == "__main__":
    check_benchmark("reach", "reach")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a wheel of the README's benchmark is installed."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "wpray" / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    folder = tmp_path_factory.mktemp("other")
    wheel = folder / f"{_NAME}-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: wpray-reach\nVersion: 0.3\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "[wpray.benchmarks]\nreach = reach.benchmark:Reach\n",
    }
    files = {"reach/__init__.py": "", "reach/benchmark.py": next(block for block in blocks if "(Benchmark)" in block)}
    files |= {f"{_NAME}.dist-info/{name}": text for name, text in about.items()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{_NAME}.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target"]
    subprocess.run([*command, str(folder / "site"), str(wheel)], check=True, timeout=120)
    return folder / "site"


def _run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environ, timeout=300)


def test_it_keeps_the_promises(site: Path, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(_CHECK)
    done = _run(site, str(tmp_path / "check.py"))
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_it_runs_end_to_end_by_its_suites_name(site: Path, tmp_path: Path) -> None:
    options = ("--policy", "random", "--task_suite", "Reach", "--num_trials_per_task", "4", "--num_parallel", "2")
    done = _run(site, "-m", "wpray.launch", *options, "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    run = load(tmp_path / "run")
    rows = run.episodes.to_pylist()
    assert [(row["suite"], row["task_name"], row["trial"]) for row in rows] == [
        ("reach", "reach_the_point", trial) for trial in range(4)
    ]
    assert all(dict(row["metrics"])["progress/distance_m"] > 0 for row in rows)
    steps = run.trajectory(("reach", 0, 0))
    assert steps.column_names == ["step", "action", "hand", "point"]
    assert np.array_equal(matrix(steps, "hand")[9], np.zeros(3)), "the ten wait steps move nothing"
    assert steps.schema.field("point").metadata == {b"description": b"where it must come", b"unit": b"m"}
    origin = run.info["origins"]["reach"]
    assert origin["source"] == "wpray-reach 0.3" == run.info["versions"]["benchmark"]
    assert "progress/distance_m" in (tmp_path / "run" / "report.html").read_text()
    again = _run(site, "-m", "wpray.launch", *options, "--output_dir", str(tmp_path / "run"))
    assert again.returncode == 0, again.stdout + again.stderr
    (site / "reach" / "__init__.py").write_text("x = 1\n")
    other = _run(site, "-m", "wpray.launch", *options, "--output_dir", str(tmp_path / "run"))
    assert other.returncode == 2 and "reach files" in other.stdout + other.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task_suite", "reach_more"), "task_suite: no suite 'reach_more'; use reach"),
        (("--benchmark", "reach.benchmark:Room"), "benchmark: reach.benchmark:Room is no benchmark"),
        (("--benchmark", "reech"), "benchmark: unknown benchmark 'reech'; did you mean reach?"),
    ],
)
def test_a_mistake_is_one_line(site: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = _run(site, "-m", "wpray.launch", "--policy", "noop", "--output_dir", str(tmp_path / "run"), *options)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
