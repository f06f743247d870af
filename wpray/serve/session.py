"""One client's conversation with a policy: the answer to each of its messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wpray.config import Config
from wpray.errors import InvalidRequestError
from wpray.policies.base import AnyPolicy
from wpray.policies.relay import Answering
from wpray.policies.remote.wire import DONE, EXECUTE, INDEX, MAX_REQUESTS, MEMORY, OWN, TRIAL, camera_key
from wpray.rollout import LoopOptions
from wpray.serve.messages import PROMPT, RESET, STATE, observation_of, trial_in
from wpray.serve.walk import Walker, WalkState, WalkStep, space_of
from wpray.types import ChunkRequest, Observation, Timing, Trial


@dataclass(frozen=True, slots=True)
class SharedPolicy:
    """Policy that clients share, with the batcher or relay of its requests."""

    policy: AnyPolicy
    answering: Answering
    config: Config
    loop: LoopOptions
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of episodes without a trial

    def metadata(self) -> dict[str, Any]:
        """Return the description that a client receives first: what the policy requires and returns."""
        spec, config = self.policy.spec, self.config
        views = {
            camera_key(role): [view.height, view.width, 3, "rotated by 180 degrees" if view.rotated else "as rendered"]
            for role, view in (spec.cameras if spec.images else {}).items()
        }
        wants = {**views, STATE: list(spec.proprio), PROMPT: "instruction", RESET: "true begins an episode"}
        action = spec.action
        gives = {"dim": action.dim, "control": action.control, "rotation": action.rotation, "gripper": action.gripper}
        return {
            OWN: {"policy": config.policy, "kind": spec.kind, "wants": wants, "gives": gives},
            EXECUTE: spec.execute_steps if spec.kind == "chunk" else 0,
            MAX_REQUESTS: min(config.batching.max_batch_size, spec.max_batch_size) * 2,
            "checkpoint": spec.checkpoint,
            "planner_mode": spec.kind,
            "control_hz": config.load_benchmark().control_hz,
        }


class ClientSession:
    """State of a client's episode, kept for clients that do not send it along."""

    def __init__(self, service: SharedPolicy) -> None:
        self._service = service
        policy, answering = service.policy, service.answering
        self._walker = Walker(answering.plan, answering.act, service.loop, policy.spec.action, space_of(policy))
        self._begin()

    def _begin(self) -> None:
        self._number, self._index = next(self._service.numbers), 0
        self._memory: bytes | None = None

    def answer(self, message: Any) -> dict[str, Any]:
        """Return the reply to a message. Raises InvalidRequestError or PolicyError."""
        began = time.perf_counter()
        if not isinstance(message, Mapping):
            raise InvalidRequestError(f"a request must be a map, not {type(message).__name__}")
        if message.get(RESET) is True:
            self._begin()
        service = self._service
        trial = trial_in(message, self._number, service.config.seed)
        seen = observation_of(message, service.policy.spec, service.loop.crop_scale)
        memory = message.get(MEMORY) if TRIAL in message else self._memory
        if service.policy.spec.kind == "chunk":
            reply = self._chunk(trial, seen, message.get(INDEX, self._index), memory)
        else:
            reply = self._walked(self._walker.step(trial, seen, WalkState.unpacked(memory) if memory else WalkState()))
        self._index, self._memory = self._index + 1, reply.get(MEMORY)
        return {**reply, "server_timing": {"infer_ms": 1000 * (time.perf_counter() - began)}}

    def _chunk(self, trial: Trial, seen: Observation, index: Any, memory: Any) -> dict[str, Any]:
        if type(index) is not int or index < 0 or not isinstance(memory, bytes | None):
            raise InvalidRequestError(f"{INDEX}, {MEMORY}: must be a number and bytes")
        reply = self._service.answering.predict(ChunkRequest(trial, index, seen, memory))
        kept = {} if reply.memory is None else {MEMORY: reply.memory}
        return {"actions": reply.actions, DONE: reply.done, **kept, "policy_timing": _timing(reply.timing)}

    def _walked(self, step: WalkStep) -> dict[str, Any]:
        plan = {"waypoints": step.state.waypoints, "durations": step.state.durations, "planned": step.planned}
        memory = step.state.packed()
        return {
            "actions": step.actions, DONE: step.done, **plan, MEMORY: memory, "policy_timing": _timing(step.timing)
        }  # fmt: skip


def _timing(timing: Timing) -> dict[str, float]:
    return {
        "infer_ms": 1000 * timing.compute_s,
        "queue_ms": 1000 * timing.queue_s,
        "batch_size": timing.batch_size,
    }
