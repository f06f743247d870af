"""The cameras that --camera takes are those of LIBERO's scenes."""

from __future__ import annotations

import pytest

from wpray.benchmarks.libero.observed import SCENE_CAMERAS


@pytest.mark.libero
def test_the_cameras_on_offer_are_those_of_a_room() -> None:
    from wpray.benchmarks.libero import tasks
    from wpray.benchmarks.libero.scene import Scene

    scene = Scene(tasks.bddl_file("libero_10", 0))
    try:
        assert set(scene.env.sim.model.camera_names) == set(SCENE_CAMERAS)
    finally:
        scene.env.close()
