"""Pictures that a drawer makes from a model and a pose are those that the environment makes by itself, to the bit."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wpray.benchmarks.drawing import LocalDrawClient, model_digest
from wpray.benchmarks.factory import list_tasks
from wpray.benchmarks.libero.benchmark import LiberoBenchmark
from wpray.errors import BadInputError
from wpray.testing.benchmarks import assert_equal
from wpray.types import DrawRequest, ImageArray, ImageSpec, Observation, ObservationSpec, Task, Trial

pytestmark = pytest.mark.libero
mujoco = pytest.importorskip("mujoco")
NATIVE = ImageSpec(256, 256, rotated=False)
BOTH = ObservationSpec({"base": NATIVE, "wrist": ImageSpec()})
TINY = """
<mujoco>
  <worldbody>
    <light name="lamp" pos="0 0 3"/>
    <camera name="front" pos="0 -2 0.5" xyaxes="1 0 0 0 0 1"/>
    <camera name="above" pos="0 0 3"/>
    <site name="mark" pos="0.5 0 0.2" size="0.1" rgba="1 1 0 0.5"/>
    <body name="fixture" pos="-0.5 0 0.2">
      <inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/>
      <geom group="1" type="box" size="0.1 0.2 0.1" rgba="{rgba}" pos="0.1 0 0" euler="0 30 0"/>
    </body>
    <body name="ball" pos="0 0 0.2"><freejoint/><geom group="1" size="0.15" rgba="0 0 1 1"/></body>
  </worldbody>
</mujoco>
"""


class CountingClient(LocalDrawClient):
    """Client that counts the models that were sent, to a drawer that can be replaced."""

    sent = 0

    def restart(self) -> None:
        from wpray.benchmarks.libero.drawing import LiberoDrawer
        from wpray.benchmarks.libero.imports import asset_roots

        self._drawer.close()
        self._drawer = LiberoDrawer(asset_roots())

    def draw(self, request: DrawRequest, model_data: Callable[[], bytes]) -> dict[str, ImageArray]:
        def counted() -> bytes:
            self.sent += 1
            return model_data()

        return super().draw(request, counted)


class Tiny:
    """Model of some shapes, with the request for its pictures."""

    def __init__(self, rgba: str = "1 0 0 1") -> None:
        from wpray.benchmarks.libero.recipe import recipe_of
        from wpray.benchmarks.libero.rendering import SceneRenderer
        from wpray.benchmarks.libero.visible import visible_fields

        xml = TINY.format(rgba=rgba)
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.compiled = visible_fields(self.model)
        self.renderer = SceneRenderer(self.model)
        self.data = recipe_of(xml, self.model, {})
        self.digest = model_digest(self.data)
        self.qpos, self.site_alpha = self.model.qpos0.copy(), self.model.site_rgba[:, 3].copy()

    def request(self, *cameras: str) -> DrawRequest:
        from wpray.benchmarks.libero.visible import changed_fields

        own = {"qpos": self.qpos.copy(), "site_alpha": self.site_alpha.copy()}
        pose = {**own, **changed_fields(self.model, self.compiled)}
        return DrawRequest(self.digest, pose, {name: (name, NATIVE) for name in cameras or ("front", "above")})

    def expected(self) -> dict[str, ImageArray]:
        pictures = self.renderer.pictures(["front", "above"], 256, 256, self.qpos, self.site_alpha)
        return dict(zip(("front", "above"), pictures, strict=True))


@pytest.fixture
def client() -> Iterator[CountingClient]:
    from wpray.benchmarks.libero.drawing import LiberoDrawer
    from wpray.benchmarks.libero.imports import asset_roots

    made = CountingClient(LiberoDrawer(asset_roots()))
    yield made
    made._drawer.close()


@pytest.mark.parametrize("together", [False, True], ids=["in turn", "together"])
def test_each_request_is_drawn_with_its_own_model_and_pose(client: CountingClient, together: bool) -> None:
    client._drawer._together = together
    first, second = Tiny(), Tiny("0 1 0 1")
    drawer = client._drawer
    for tiny in (first, second):
        drawer.learn(tiny.digest, tiny.data)
    plain = [first.request(), second.request()]
    expected = [first.expected(), second.expected()]
    first.qpos[:3] = 0.3, 0.2, 0.4
    first.site_alpha[:] = 0
    first.model.body("fixture").pos[2] = 0.6
    first.model.camera("front").pos[0] = 0.4
    first.model.light("lamp").diffuse[:] = 0.2
    first.model.geom_rgba[0] = 1, 1, 1, 0.5
    moved, moved_expected = first.request(), first.expected()
    assert not np.array_equal(moved_expected["front"], expected[0]["front"])
    found = drawer.draw([plain[0], moved, plain[1], plain[0], moved])
    assert_equal(found, [expected[0], moved_expected, expected[1], expected[0], moved_expected])


def test_a_change_of_the_model_that_shows_is_in_the_pose(client: CountingClient) -> None:
    tiny = Tiny()
    before = tiny.expected()
    given = {"geom_group": 0, "light_active": 0, "site_group": 5}
    for name in (
        *("body_pos", "body_quat", "geom_pos", "geom_quat", "geom_size", "geom_rgba", "geom_group"),
        *("site_pos", "site_size", "site_rgba", "site_group"),
        *("cam_pos", "cam_quat", "cam_fovy", "light_pos", "light_dir", "light_active", "light_diffuse"),
    ):
        field = getattr(tiny.model, name)
        compiled = field.copy()
        field[...] = given.get(name, field * 0.7 + 0.1)
        expected = tiny.expected()
        assert any(not np.array_equal(expected[camera], before[camera]) for camera in before), f"{name} does not show"
        assert_equal(client.draw(tiny.request(), lambda: tiny.data), expected, name)
        field[...] = compiled
    assert_equal(client.draw(tiny.request(), lambda: tiny.data), before)
    assert client.sent == 1


def test_a_camera_is_drawn_once_for_all_that_look_through_it(client: CountingClient) -> None:
    tiny = Tiny()
    views = {"large": ("front", NATIVE), "small": ("front", ImageSpec(48, 64))}
    found = client.draw(replace(tiny.request(), views=views), lambda: tiny.data)
    assert list(found) == ["large", "small"] and found["small"].shape == (48, 64, 3)
    assert np.array_equal(found["large"], tiny.expected()["front"])


def test_a_model_is_sent_once_until_it_is_forgotten(client: CountingClient) -> None:
    models = [Tiny(rgba) for rgba in ("1 0 0 1", "0 1 0 1", "0 0 1 1")]
    client._drawer._most = 2 * models[0].model.nbuffer
    first = client.draw(models[0].request(), lambda: models[0].data)
    for index in (1, 0, 2):  # two are kept, and 1 was drawn longest ago
        client.draw(models[index].request(), lambda index=index: models[index].data)
    assert [client._drawer.knows(tiny.digest) for tiny in models] == [True, False, True]
    assert client.sent == 3
    assert_equal(client.draw(models[0].request(), lambda: models[0].data), first)
    assert client.sent == 3


def test_a_scene_that_is_damaged_foreign_or_unknown_is_refused(client: CountingClient) -> None:
    tiny, drawer = Tiny(), client._drawer
    with pytest.raises(BadInputError, match="digest"):
        drawer.learn(tiny.digest, tiny.data[:-1] + b"x")
    recipe = json.loads(tiny.data)
    texture = '<asset><texture name="t" type="2d" file="$nobody/t.png"/></asset></mujoco>'
    for changed, message in (
        ({"mujoco": "2.3.7"}, f"compiled by MuJoCo 2.3.7, and this machine has {mujoco.__version__}"),
        ({"files": "0" * 64}, "meshes or textures are others"),
        ({"xml": recipe["xml"].replace("</mujoco>", texture)}, r"does not compile here: .*nobody/t\.png"),
    ):
        data = json.dumps(recipe | changed).encode()
        with pytest.raises(BadInputError, match=message):
            drawer.learn(model_digest(data), data)
        assert not drawer.knows(model_digest(data))
    with pytest.raises(KeyError):
        drawer.draw([tiny.request()])


def test_a_scene_compiles_once_in_another_thread_and_what_fails_shows_when_it_is_learned(
    client: CountingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wpray.benchmarks.libero import drawing

    tiny, drawer, threads = Tiny(), client._drawer, []
    compile_recipe = drawing.compile_recipe

    def counted(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return compile_recipe(*given)

    monkeypatch.setattr(drawing, "compile_recipe", counted)
    drawer.prepare(tiny.digest, tiny.data)
    drawer.prepare(tiny.digest, tiny.data)
    assert not drawer.knows(tiny.digest)
    drawer.learn(tiny.digest, tiny.data)
    drawer.prepare(tiny.digest, tiny.data)
    assert len(threads) == 1 and threads[0] is not threading.main_thread()
    assert_equal(drawer.draw([tiny.request()]), [tiny.expected()])
    drawer.prepare("0" * 64, tiny.data)
    with pytest.raises(BadInputError, match="digest"):
        drawer.learn("0" * 64, tiny.data)
    assert not drawer._compiled, "compiled scenes are kept that nobody draws"


def test_scenes_that_nobody_learns_are_dropped_and_compile_again(
    client: CountingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wpray.benchmarks.libero import drawing

    monkeypatch.setattr(drawing, "_MOST_PREPARED", 2)
    models, drawer = [Tiny(rgba) for rgba in ("1 0 0 1", "0 1 0 1", "0 0 1 1")], client._drawer
    for tiny in models:
        drawer.prepare(tiny.digest, tiny.data)
    assert list(drawer._compiled) == [tiny.digest for tiny in models[1:]]
    assert_equal(client.draw(models[0].request(), lambda: models[0].data), models[0].expected())


def test_files_are_found_below_each_machines_own_folder(tmp_path: Path) -> None:
    from wpray.benchmarks.libero.recipe import compile_recipe, recipe_of

    folders = [tmp_path / "one's & only", tmp_path / "same", tmp_path / "other"]
    for folder, colour in zip(folders, (77, 77, 78), strict=True):
        folder.mkdir()
        Image.fromarray(np.full((8, 8, 3), colour, dtype=np.uint8)).save(folder / "t.png")
    path = str(folders[0] / "t.png").replace("&", "&amp;")
    texture = f'<asset><texture name="t" type="2d" file="{path}"/></asset></mujoco>'
    xml = TINY.format(rgba="1 0 0 1").replace("</mujoco>", texture)
    data = recipe_of(xml, mujoco.MjModel.from_xml_string(xml), {"mine": folders[0]})
    assert str(tmp_path).encode() not in data
    (folders[0] / "t.png").unlink()
    assert compile_recipe(data, {"mine": folders[1]}).tex_data[0] == 77
    with pytest.raises(BadInputError, match="meshes or textures are others"):
        compile_recipe(data, {"mine": folders[2]})


def test_a_larger_picture_leaves_the_model_as_it_was() -> None:
    from wpray.benchmarks.libero.rendering import SceneRenderer

    tiny = Tiny()
    renderer, size = SceneRenderer(tiny.model), tiny.model.vis.global_
    before = size.offwidth, size.offheight
    small = renderer.render("front", 256, 256, tiny.qpos, tiny.site_alpha)
    assert renderer.render("front", 700, 900, tiny.qpos, tiny.site_alpha).shape == (700, 900, 3)
    assert np.array_equal(renderer.render("front", 256, 256, tiny.qpos, tiny.site_alpha), small)
    assert (size.offwidth, size.offheight) == before
    renderer.close()


def _seen(env: Any, trial: Trial) -> Observation:
    """Return what is seen after two steps."""
    env.load(trial.task)
    env.reset(trial)
    for action in (np.full(7, 0.5), np.full(7, -0.4)):
        env.step(action)
    return env.observe(BOTH)


def _assert_that_no_other_field_changed(env: Any) -> None:
    """Compare all of the model in use with what a drawer compiles, but for what a pose holds."""
    from wpray.benchmarks.libero.imports import asset_roots
    from wpray.benchmarks.libero.recipe import compile_recipe

    scene = env._scene
    ours, theirs = scene.model, compile_recipe(scene.recipe(asset_roots()), asset_roots())
    changes = scene.changes()
    for name, values in changes.items():
        getattr(theirs, name)[:] = values
    for name in dir(ours):
        mine, compiled = getattr(ours, name), getattr(theirs, name)
        if isinstance(mine, np.ndarray):
            assert mine.tobytes() == compiled.tobytes(), f"{name} has changed, and no pose holds it"
        elif isinstance(mine, int) and not name.startswith("_") and name != "signature":  # see compiled_models
            assert mine == compiled, name
    theirs.vis.global_.bvactive = 0  # as a scene sets it: marks of bounding volumes, which no picture shows
    assert str(ours.vis) == str(theirs.vis) and str(ours.stat) == str(theirs.stat)


def _with_stove_lit(env: Any, task: Task) -> Trial:
    """Return a trial that begins with the stove's knob turned."""
    env.load(task)
    (name,) = env._scene.env.fixtures_dict["flat_stove_1"].joints
    state = env._states[0].copy()
    state[1 + env._scene.model.joint(name).qposadr[0]] = 1.5
    return Trial(task, 0, 0, own_state=tuple(state.tolist()))


def test_fixtures_that_a_reset_places_and_a_stove_that_is_lit_are_drawn(client: CountingClient) -> None:
    task = list_tasks("libero_goal")[7]
    env: Any = LiberoBenchmark().make_environment("libero_goal", "wpray")
    trials = [Trial(task, 0, 0), Trial(task, 1, 0), _with_stove_lit(env, task)]
    local = [_seen(env, trial) for trial in trials]
    env.draw_with(client)
    remote = [_seen(env, trial) for trial in trials]
    assert_equal(remote, local)
    assert client.sent == 1
    off, other, lit = (seen.images["base"] for seen in remote)
    assert not np.array_equal(off, other) and not np.array_equal(off, lit)
    _assert_that_no_other_field_changed(env)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_10", "libero_goal", "libero_90"])
def test_tasks_of_all_suites_are_drawn_in_turn_by_one_drawer_that_restarts(suite: str, client: CountingClient) -> None:
    tasks = list_tasks(suite)[2:8:3]
    envs: list[Any] = [LiberoBenchmark().make_environment(suite, "wpray") for _ in tasks]
    for index, (env, task) in enumerate(zip(envs, tasks, strict=True)):
        env.load(task)
        env.reset(Trial(task, index, 0))
    for step in range(5):
        local = [env.observe(BOTH) for env in envs]
        for env in envs:
            env.draw_with(client)
        assert_equal([env.observe(BOTH) for env in envs], local)
        for env in envs:
            env._client = None
            env.step(np.full(7, 0.1 * step))
        if step == 2:
            client.restart()
    assert client.sent == 2 * len({env._recipe for env in envs})  # tasks of libero_spatial have one scene
    for env in envs:
        _assert_that_no_other_field_changed(env)
        env.close()
