"""Thin Ray shells: an env actor runs episodes, a policy actor answers requests. The work is done elsewhere."""

from __future__ import annotations

import os
import random
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray

from wpray.config import Config
from wpray.policy.batching import Batcher, PolicyError
from wpray.policy.factory import build_policy, policy_spec
from wpray.results.encode import EncodedEpisode, EpisodeContext, encode_episode, encode_error
from wpray.rollout import RolloutSettings, run_trial
from wpray.scheduler import Assignment
from wpray.transport import Address, PolicyServer, RemotePolicy
from wpray.types import Trial


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every actor knows of the run."""

    run_id: str
    config: Config
    key: bytes  # both ends of a policy connection prove that they know it


@dataclass(frozen=True, slots=True)
class Health:
    """A sign of life."""

    idle_s: float  # since the last step, reply or start of work; 0 when there is nothing to do
    busy_s: float  # at work, in all


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of an assignment: a row either way, and whose fault an error is."""

    episode: EncodedEpisode
    error_from: str | None = None  # "policy" or "environment"


class PolicyShell:
    """Holds the policy and serves it; restarted by Ray if it dies, loading it again."""

    def __init__(self, context: RunContext) -> None:
        config = context.config
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        began = time.perf_counter()
        policy = build_policy(config)
        self._load_s = time.perf_counter() - began
        size = min(config.batching.max_batch_size, policy.spec.max_batch_size)
        self._batcher = Batcher(policy, size, config.batching.max_wait_ms / 1000)
        host = ray.util.get_node_ip_address()
        self._server = PolicyServer(self._batcher, host, context.key)

    def address(self) -> Address:
        """Where env actors connect."""
        return self._server.address

    def load_s(self) -> float:
        """Seconds that loading the policy took."""
        return self._load_s

    def health(self) -> Health:
        """How long the batch in hand has been computing."""
        since = self._batcher.busy_since
        return Health(0.0 if since is None else time.monotonic() - since, self._batcher.busy_s)


class EnvShell:
    """Holds one environment in a process of its own; dies alone."""

    def __init__(self, name: str, context: RunContext, policies: list[Any]) -> None:
        self._name, self._context, self._policies = name, context, policies
        self._busy_s, self._since = 0.0, time.monotonic()
        self._working = False

    @ray.method(concurrency_group="work")
    def start(self) -> str:
        """Imports the simulator and prepares rendering; returns the node's name. Raises what a bad machine raises."""
        from wpray.envs.factory import FAKE_SUITE, make_environment

        config = self._context.config
        if config.task_suite != FAKE_SUITE:
            from wpray.envs import gl

            gl.prepare(gl.choose(config.env.renderer))
        self._env = make_environment(config.task_suite, config.env.protocol)
        self._policy = RemotePolicy(policy_spec(config), self._find_policy, self._context.key, self._alive)
        return os.uname().nodename

    @ray.method(concurrency_group="work")
    def run(self, assignment: Assignment) -> Attempt:
        """Runs one attempt; an exception of the policy or the environment becomes an error row."""
        self._working = True
        self._alive()
        started, began = datetime.now(UTC), time.monotonic()
        config = self._context.config
        settings = RolloutSettings(config.num_steps_wait, config.record != "none", lambda _: self._alive())
        try:
            result = run_trial(self._env, self._policy, assignment.trial, settings)
            return Attempt(encode_episode(result, self._row_context(assignment, started), config.record))
        except Exception as error:  # the one place where an episode's exception becomes a row
            return self._failed(assignment, started, error)
        finally:
            self._busy_s += time.monotonic() - began
            self._working = False

    @ray.method(concurrency_group="health")
    def health(self) -> Health:
        """How long ago the last step or reply was; runs beside `run`."""
        return Health(time.monotonic() - self._since if self._working else 0.0, self._busy_s)

    def _failed(self, assignment: Assignment, started: datetime, error: Exception) -> Attempt:
        text = "".join(traceback.format_exception(error)).strip()
        message = f"{error}\n{text}"
        row = encode_error(assignment.trial, self._row_context(assignment, started), type(error).__name__, message)
        if isinstance(error, PolicyError):
            return Attempt(row, "policy")
        self._env.close()  # whatever state it is in now: compile again before the next trial
        return Attempt(row, "environment")

    def _alive(self) -> None:
        self._since = time.monotonic()

    def _find_policy(self) -> Address:
        """A replica that answers; the first choice is spread evenly over the replicas by this actor's name."""
        for replica in self._preference():
            try:
                address: Address = ray.get(replica.address.remote(), timeout=60.0)
                return address
            except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                self._alive()
        raise ConnectionError("no policy replica answers yet")

    def _preference(self) -> list[Any]:
        order = list(self._policies)
        random.Random(self._name).shuffle(order)
        return order

    def _row_context(self, assignment: Assignment, started: datetime) -> EpisodeContext:
        config = self._context.config
        return EpisodeContext(
            run_id=self._context.run_id,
            policy=config.policy,
            checkpoint=config.vlm_checkpoint,
            protocol=config.env.protocol,
            node=os.uname().nodename,
            worker=self._name,
            attempt=assignment.attempt,
            started_at=started,
            ended_at=datetime.now(UTC),
        )


def lost_row(context: RunContext, trial: Trial, attempt: int, worker: str, reason: str) -> EncodedEpisode:
    """The error row of a trial whose actors all died."""
    now = datetime.now(UTC)
    config = context.config
    row = EpisodeContext(
        context.run_id, config.policy, config.vlm_checkpoint, config.env.protocol, None, worker, attempt, now, now
    )
    return encode_error(trial, row, "ActorLostError", reason)


_FOREVER = {"max_restarts": -1, "max_task_retries": -1}
PolicyActor: Any = ray.remote(num_cpus=0, max_concurrency=4, **_FOREVER)(PolicyShell)
# An env actor that dies is replaced by a new one: the driver must know, because its trial in hand is lost.
EnvActor: Any = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={"work": 1, "health": 1})(EnvShell)
