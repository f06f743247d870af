"""A killed run is resumed on other software: refused if it decides outcomes, else written down as a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy
import pyarrow.parquet as pq
import pytest

from tests.faults import runs
from tests.faults.conftest import SHORT, Record

pytestmark = pytest.mark.faults


def _installed(place: Path, name: str, version: str) -> Path:
    """A folder for PYTHONPATH that holds the metadata of a distribution."""
    info = place / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return place


def _contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_killed_run_is_resumed_by_another_version(
    tmp_path: Path, reference: Callable[..., Path], survived: Record
) -> None:
    undisturbed, folder = reference(*SHORT), tmp_path / "run"
    with runs.launched(folder, *SHORT) as run:
        assert run.wait_for(lambda: run.finished_trials >= 5)
        assert not run.kill()
    before = _contents(folder)

    other = _installed(tmp_path / "mujoco", "mujoco", "9.9.9")
    (other / "mujoco").mkdir()
    (other / "mujoco" / "__init__.py").write_text('raise ImportError("not a simulator")\n')
    with runs.launched(folder, *SHORT, PYTHONPATH=f"{other}{os.pathsep}{runs.ROOT}") as refused:
        assert refused.end() == 2
    assert "mujoco (" in refused.text and "there, 9.9.9 here)" in refused.text
    assert refused.text.count("\n") == 1
    assert _contents(folder) == before

    newer = _installed(tmp_path / "numpy", "numpy", "9.9.9")
    for name in ("numpy", "numpy.libs"):
        (newer / name).symlink_to(Path(numpy.__file__).parents[1] / name)
    with runs.launched(folder, *SHORT, PYTHONPATH=f"{newer}{os.pathsep}{runs.ROOT}") as resumed:
        assert resumed.end() == 0, resumed.text[-3000:]
    assert "resuming on other software" in resumed.text and "numpy 9.9.9 instead of " in resumed.text
    runs.assert_same(folder, undisturbed)
    first, second = runs.sessions(folder)
    assert (first["versions"]["numpy"], second["versions"]["numpy"]) == (numpy.__version__, "9.9.9")
    assert first["ended"] is None and second["ended"] is not None and first["hosts"]
    kept = {path.stem for path in before if path.parent.parent.name == "parts"}
    rows = pq.read_table(folder / "episodes.parquet", columns=["task_id", "trial", "session"]).to_pylist()
    made = {f"{row['task_id']:03d}_{row['trial']:05d}": row["session"] for row in rows}
    assert made == {name: 0 if name in kept else 1 for name in made}
    survived("killed run resumed by another MuJoCo", 1, "refused, untouched")
    survived("killed run resumed by another NumPy", 1)
