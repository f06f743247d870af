"""Scripted pick-and-place policy that reads the simulator, to test the harness instead of a model.

It answers the two requests of a learned policy: a plan of seven waypoints (above the object, down, grasp, lift, above
the goal, lower, release), then the actions from one waypoint to the next. It keeps no state and reads the progress,
such as an object in the hand, from the scene, so a new plan continues where the last one ended.

A waypoint is (position, axis-angle, finger joints) in physical units, without normalization.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field
from scipy.spatial.transform import Rotation

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec, WaypointUnits
from wpray.policies.noop import NoopPolicy
from wpray.policies.scripted.arm_motion import POSITION_SCALE, ROTATION_SCALE, commands_towards, steps_towards
from wpray.policies.scripted.grasping import centre_of, find_grasp
from wpray.tracking import PhysicalSpace
from wpray.types import (
    MAX_SEGMENT_STEPS,
    FloatArray,
    ObjectState,
    Observation,
    PlanReply,
    PlanRequest,
    PrivilegedState,
    Segment,
    SegmentReply,
    SegmentRequest,
    WaypointPlan,
    first_executable,
)

_SPACE = PhysicalSpace()
_OPEN, _CLOSED = np.array([0.04, -0.04]), np.array([0.0, 0.0])
_TURN_LIMIT = 0.4  # of a full rotation command, because faster turns shake the held object
_HOVER = 0.08  # above the object's top, m
_CARRY = 0.30  # above the goal's origin, m
_DROP = 0.14  # below the carrying height, m
_CLOSE_STEPS, _OPEN_STEPS = 12, 12
_LIFTED = 0.02  # an object this far above the lowest one is off the ground, m
_REACH = 0.05  # an object whose middle is this close to the hand is between the fingers, m


class Settings(BaseModel):
    """Settings of the scripted policy."""

    elsewhere: Literal["refuse", "stay"] = Field(
        "refuse", description="suites that it does not solve: refuse them, or do nothing there, as noop does"
    )


def spec_of(config: Config) -> PolicySpec:
    """Return the policy's spec. Raise BadInputError for a suite that its benchmark does not say it solves.

    With `elsewhere: stay`, all suites are accepted.
    """
    name, unsolved = ScriptedPolicy.spec.name, _unsolved(config)
    if unsolved and Settings.model_validate(config.policy_args).elsewhere == "refuse":
        solved, solver = config.load_benchmark().solved_by or ("", "")
        what = f"{solved} only" if solver == name else "no suite of its benchmark"
        remedy = "use a learned policy, or --policy_args.elsewhere stay to do nothing there"
        raise BadInputError(f"policy {name} solves {what}, not {unsolved[0]}; {remedy}")
    return ScriptedPolicy.spec


def _unsolved(config: Config) -> list[str]:
    solved = config.load_benchmark().solved_by
    return [suite for suite in config.suites if (suite, ScriptedPolicy.spec.name) != solved]


def waypoint_units(config: Config) -> WaypointUnits:
    """Return the units of observed proprio."""
    return WaypointUnits()


def build(config: Config) -> ScriptedPolicy:
    """Return the policy; `config` is checked as in `spec_of`."""
    spec_of(config)
    return ScriptedPolicy(_unsolved(config))


class ScriptedPolicy:
    """Policy that puts the task's object into the task's goal; it reads both from privileged state."""

    spec = PolicySpec("scripted", images=False, privileged=True, num_gpus=0, max_batch_size=32)

    def __init__(self, unsolved: Collection[str] = ()) -> None:
        """`unsolved`: suites in which it does nothing."""
        self._unsolved, self._still = frozenset(unsolved), NoopPolicy(self.spec)

    def plan(self, requests: Sequence[PlanRequest]) -> list[PlanReply]:
        """Return seven waypoints per request, with the first segment's actions."""
        return [
            self._still.plan([request])[0] if self._stays(request) else _plan(request.observation)
            for request in requests
        ]

    def act(self, requests: Sequence[SegmentRequest]) -> list[SegmentReply]:
        """Return the actions from the hand's current pose to each request's end waypoint."""
        return [self._still.act([request])[0] if self._stays(request) else _act(request) for request in requests]

    def _stays(self, request: PlanRequest | SegmentRequest) -> bool:
        return request.trial.task.suite in self._unsolved


def _act(request: SegmentRequest) -> SegmentReply:
    return SegmentReply(_segment(_truth(request.observation), request.end.astype(np.float64), request.duration))


def _plan(observation: Observation) -> PlanReply:
    state = _truth(observation)
    target, goal = _find(state, state.target), _find(state, state.goal)
    waypoints, durations = _carry(state, target, goal) if _is_held(state, target) else _fetch(state, target, goal)
    start = observation.proprio.astype(np.float32)
    plan = WaypointPlan(start, waypoints.astype(np.float32), np.array(durations, dtype=np.int64))
    first = first_executable(plan.durations)
    segment = None if first is None else _segment(state, waypoints[first], min(durations[first], MAX_SEGMENT_STEPS))
    return PlanReply(plan, segment, space=_SPACE)


def _fetch(state: PrivilegedState, target: ObjectState, goal: ObjectState) -> tuple[FloatArray, list[int]]:
    """Return the whole plan: above the object, down to it, grasp, lift, above the goal, lower, release."""
    grasp = find_grasp(state, target)
    turned = Rotation.from_euler("z", grasp.turn) * Rotation.from_matrix(state.eef_rotation)
    above = np.append(grasp.centre, target.top + _HOVER)
    down = np.append(grasp.centre, grasp.height)
    lift_height = max(grasp.height + 0.05, goal.position[2] + _CARRY)
    up = np.append(grasp.centre, lift_height)
    over = np.append(goal.position[:2], lift_height)
    low = over - [0, 0, _DROP]
    positions = [above, down, down, up, over, low, low]
    fingers = [_OPEN, _OPEN, _CLOSED, _CLOSED, _CLOSED, _CLOSED, _OPEN]
    durations = _durations([state.eef_pos, *positions], tolerances=[0.01, 0.006, 1, 0.04, 0.02, 0.04, 1])
    durations[0] = max(durations[0], _turn_steps(grasp.turn))
    durations[2], durations[6] = _CLOSE_STEPS, _OPEN_STEPS
    return _waypoints(positions, turned, fingers), durations


def _carry(state: PrivilegedState, target: ObjectState, goal: ObjectState) -> tuple[FloatArray, list[int]]:
    """Return the plan with an object in the hand: lift, above the goal, lower, release; the rest stays empty."""
    held_at = np.append(centre_of(target), state.eef_pos[2]) - state.eef_pos
    lift_height = max(state.eef_pos[2], goal.position[2] + _CARRY)
    up = np.append(state.eef_pos[:2], lift_height)
    over = np.append(goal.position[:2] - held_at[:2], lift_height)
    low = over - [0, 0, _DROP]
    positions = [up, over, low, low, low, low, low]
    fingers = [_CLOSED] * 3 + [_OPEN] * 4
    durations = _durations([state.eef_pos, *positions], tolerances=[0.03, 0.015, 0.03, 1, 1, 1, 1])
    durations[3:] = [_OPEN_STEPS, 0, 0, 0]
    durations[0] = durations[0] or -1  # skipped if the hand is high enough already
    durations[1] = durations[1] or -1
    return _waypoints(positions, Rotation.from_matrix(state.eef_rotation), fingers), durations


def _segment(state: PrivilegedState, waypoint: FloatArray, duration: int) -> Segment:
    """Return actions (duration, 7) that bring the hand to `waypoint` and hold it there."""
    turn = (Rotation.from_rotvec(waypoint[3:6]) * Rotation.from_matrix(state.eef_rotation).inv()).as_rotvec()
    actions = np.empty((duration, 7))
    actions[:, :3] = commands_towards(waypoint[:3] - state.eef_pos, duration, POSITION_SCALE)
    actions[:, 3:6] = commands_towards(turn, duration, ROTATION_SCALE, _TURN_LIMIT)
    actions[:, 6] = 1.0 if waypoint[6] < 0.02 else -1.0
    return Segment(actions)


def _is_held(state: PrivilegedState, target: ObjectState) -> bool:
    ground = min(thing.bottom for thing in state.objects)
    middle = np.append(centre_of(target), (target.top + target.bottom) / 2)
    near = np.linalg.norm((middle - state.eef_pos)[:2]) < _REACH and abs(state.eef_pos[2] - middle[2]) < 0.12
    return bool(near and target.bottom > ground + _LIFTED)


def _durations(positions: Sequence[FloatArray], tolerances: Sequence[float]) -> list[int]:
    return [
        steps_towards(end - start, POSITION_SCALE, tolerance)
        for start, end, tolerance in zip(positions, positions[1:], tolerances, strict=False)
    ]


def _turn_steps(turn: float) -> int:
    return steps_towards(np.array([0.0, 0.0, turn]), ROTATION_SCALE, tolerance=0.05, limit=_TURN_LIMIT)


def _waypoints(positions: Sequence[FloatArray], rotation: Rotation, fingers: Sequence[FloatArray]) -> FloatArray:
    turned = rotation.as_rotvec()
    return np.array([np.concatenate([p, turned, f]) for p, f in zip(positions, fingers, strict=True)])


def _truth(observation: Observation) -> PrivilegedState:
    if observation.privileged is None:
        raise BadInputError("policy scripted needs the simulator's state, which this environment does not offer")
    return observation.privileged


def _find(state: PrivilegedState, name: str) -> ObjectState:
    found = next((thing for thing in state.objects if thing.name == name), None)
    if found is None:
        raise BadInputError(f"policy scripted cannot handle {name!r}: it moves free objects into free objects only")
    return found
