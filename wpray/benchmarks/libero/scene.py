"""LIBERO's simulation of one task, compiled once and reset exactly as stock resets it by compiling again.

Stock LIBERO rebuilds and recompiles its model at every reset (3 s). What a recompilation puts back is little: fixture
poses, site and geom colours, and a list of initialisers that grows with every rebuild. Putting those back by hand gives
the same bits in some milliseconds.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from wpray.benchmarks.libero.compiled_models import compiled
from wpray.benchmarks.libero.contacts import Contacts
from wpray.benchmarks.libero.imports import load
from wpray.benchmarks.libero.observed import CAMERA_SIZE, CAMERAS, CONTROL_HZ
from wpray.benchmarks.libero.recipe import Roots, recipe_of
from wpray.benchmarks.libero.visible import changed_fields, visible_fields
from wpray.types import FloatArray

_RESTORED = ("body_pos", "body_quat", "site_rgba", "site_size", "site_pos", "geom_rgba")
_RESET_ATTEMPTS = 100


class Scene:
    """One compiled LIBERO task."""

    def __init__(self, bddl: Path) -> None:
        """Compile the task that `bddl` describes (some seconds). Render nothing and make no GL context."""
        self.env = _make(bddl)
        self.model: mujoco.MjModel = self.env.sim.model._model
        self.data: mujoco.MjData = self.env.sim.data._data
        # Nothing reads the force sensors, and no dynamics depend on them.
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
        # In every substep MuJoCo would clear a mark of each bounding volume, for its viewer. LIBERO's meshes have 0.6
        # to 0.8 million, and clearing a byte for each takes 14 to 19% of a step.
        self.model.vis.global_.bvactive = 0
        self._initialisers = self.env.pristine_initialisers
        self._visible_sites = {
            name: copy.deepcopy(thing.object_properties.get("vis_site_names")) for name, thing in self._things()
        }

    def reset(self, rounds: int = 1) -> None:
        """Reset as stock's hard reset number `rounds` since creation would; draw from numpy's global generator.

        Raises RuntimeError if no placement of the objects is found in 100 attempts (stock would try forever).
        """
        env = self.env
        mujoco.set_mjcb_time(None)  # MjData sets it, and every stage of a substep then reads the clock twice
        for _ in range(_RESET_ATTEMPTS):
            self._restore(rounds)
            mujoco.mj_resetData(self.model, self.data)
            # Stock runs `forward` after compiling and when it makes its GL context; each moves the solver's warm start.
            mujoco.mj_forward(self.model, self.data)
            mujoco.mj_forward(self.model, self.data)
            try:
                env._reset_internal()
                break
            except load("robosuite.utils.errors").RandomizationError:
                continue
        else:
            raise RuntimeError(f"no placement of the objects found in {_RESET_ATTEMPTS} attempts")
        env.sim.forward()
        env._obs_cache = {}
        env.visualize(vis_settings={name: False for name in env._visualizations})

    def recipe(self, roots: Roots) -> bytes:
        """Return what another process compiles the same model from, whatever has changed since; takes 0.1 s."""
        return recipe_of(self.env.compiled_xml, self.model, roots)

    def changes(self) -> dict[str, NDArray[Any]]:
        """Return copies of the model's fields that show in pictures and are not as they were compiled."""
        return changed_fields(self.model, self.env.compiled_fields)

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()

    def _restore(self, rounds: int) -> None:
        env = self.env
        for name, values in env.pristine.items():
            getattr(self.model, name)[:] = values
        for name, thing in self._things():
            if self._visible_sites[name] is not None:
                thing.object_properties["vis_site_names"] = copy.deepcopy(self._visible_sites[name])
        # Stock appends the task's initialisers again at every rebuild and runs them all at every reset.
        env.object_property_initializers[:] = self._initialisers * (rounds + 1)
        for robot in env.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)

    def _things(self) -> list[tuple[str, Any]]:
        return [*self.env.fixtures_dict.items(), *self.env.objects_dict.items()]


def _make(bddl: Path) -> Any:
    """Return LIBERO's environment as OffScreenRenderEnv configures it, but no cameras, observables or GL context."""
    envs = load("libero.libero.envs")
    problem = load("libero.libero.envs.bddl_utils").get_problem_info(str(bddl))["problem_name"]
    controller = load("robosuite").load_controller_config(default_controller="OSC_POSE")
    return _remembering(envs.TASK_MAPPING[problem])(
        str(bddl),
        robots=["Panda"],
        controller_configs=controller,
        gripper_types="default",
        initialization_noise=None,
        use_camera_obs=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        render_camera="frontview",
        control_freq=CONTROL_HZ,
        horizon=1000,
        ignore_done=True,
        hard_reset=False,
        camera_names=list(CAMERAS.values()),
        camera_heights=CAMERA_SIZE,
        camera_widths=CAMERA_SIZE,
    )


def _remembering(stock: type) -> type:
    """Return a subclass of `stock` that keeps what a recompilation gives: the model's fields before the first reset.

    It evaluates the goal's contacts from arrays, and keeps the last value of each predicate of the goal.
    """

    def initialize(self: Any, xml_string: str | None = None) -> None:
        self.compiled_xml = xml_string or self.model.get_xml()
        with _models_from_the_cache():
            stock._initialize_sim(self, self.compiled_xml)  # type: ignore[attr-defined]
        model = self.sim.model._model
        self.pristine = {name: getattr(model, name).copy() for name in _RESTORED}
        self.compiled_fields = visible_fields(model)
        self.pristine_initialisers = list(self.object_property_initializers)
        self.contacts = Contacts(model, self.sim.data._data)
        self.predicate_values = {}

    def check_contact(self: Any, geoms_1: Any, geoms_2: Any = None) -> bool:
        touching: bool = self.contacts.between(geoms_1, geoms_2)
        return touching

    def eval_predicate(self: Any, state: list[str]) -> Any:
        value = stock._eval_predicate(self, state)  # type: ignore[attr-defined]
        self.predicate_values[tuple(state)] = value
        return value

    # LIBERO checks that the class has the problem's name.
    changed = {"_initialize_sim": initialize, "check_contact": check_contact, "_eval_predicate": eval_predicate}
    return type(stock.__name__, (stock,), changed)


@contextlib.contextmanager
def _models_from_the_cache() -> Iterator[None]:
    """Let robosuite load models that a process has compiled before."""
    simulation = load("robosuite.utils.binding_utils").MjSim
    stock = vars(simulation)["from_xml_string"]
    simulation.from_xml_string = classmethod(lambda cls, xml: cls(compiled(xml)))
    try:
        yield
    finally:
        simulation.from_xml_string = stock


def gripper_axis(env: Any) -> FloatArray:
    """Return the (3,) unit vector from one finger pad to the other, world frame."""
    model, data = env.sim.model, env.sim.data._data
    first, second = (data.geom_xpos[model.geom_name2id(f"gripper0_finger{n}_pad_collision")] for n in (1, 2))
    axis = np.array(first - second)
    return np.asarray(axis / np.linalg.norm(axis))
