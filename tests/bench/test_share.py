"""`bench share` measures a batch beside other processes, without a GPU at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from wpray.bench import share, share_load
from wpray.bench.share import Neighbours, SharedTime
from wpray.errors import BadInputError

TINY = ["--variant", "tiny", "--precision", "float32", "--batch", "1", "--calls", "1"]


def test_batches_are_measured_alone_and_beside_each_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert share.main([*TINY, "--busy", "1", "--drawing", "0", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["neighbours"] for row in found["rows"]] == [{"busy": 0, "drawing": 0}, {"busy": 1, "drawing": 0}]
    assert found["rows"][0]["ratio"] == 1
    assert all(row["p90_ms"] >= row["median_ms"] > 0 for row in found["rows"])
    assert "1 busy cores" in capsys.readouterr().out


@pytest.mark.libero
def test_a_process_that_draws_says_how_many_frames() -> None:
    words = ["draw", "50", "3000", "32"]
    process = share._Process(words, os.environ)
    assert process.ready()["gpu_ms"] > 0
    found = process.end()
    assert found["frames"] % 2 == 0
    assert found["seconds"] > 0


def test_a_process_that_cannot_draw_is_one_line_that_names_the_remedy() -> None:
    process = share._Process(["draw", "1", "1000", "32"], {**os.environ, "MUJOCO_GL": "none"})
    with pytest.raises(BadInputError, match=r"ended at once .*--drawing 0"):
        process.ready()
    process.kill()


def test_the_frames_share_of_the_gpu_is_the_floor() -> None:
    row = SharedTime(Neighbours(4, 44), 13.0, 15.0, frames_per_s=250, frame_ms=1.0, alone_ms=10.0)
    assert row.ratio == 1.3
    assert row.floor == pytest.approx(4 / 3)
    assert SharedTime(Neighbours(), 1.0, 1.0, 1000, 1.0, 1.0).floor == float("inf")


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs MuJoCo")
def test_a_scene_has_about_as_many_triangles_as_wanted() -> None:
    import mujoco

    model = mujoco.MjModel.from_xml_string(share_load.scene_xml(95_000))
    meshes = model.geom_dataid[model.geom_type == mujoco.mjtGeom.mjGEOM_MESH]
    assert abs(sum(model.mesh_facenum[mesh] for mesh in meshes) - 95_000) < 6_000
