"""Thin Ray shells: an env actor runs episodes, a policy actor answers requests. The work is done elsewhere."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import ray

from wpray.benchmarks.base import Environment
from wpray.benchmarks.factory import FAKE_SUITE, make_environment
from wpray.cluster import node_versions
from wpray.config import Config
from wpray.errors import wrapping_errors
from wpray.orchestration.loop_options import loop_options
from wpray.orchestration.notices import NoticeKeeper
from wpray.orchestration.scheduler import Assignment
from wpray.policies.base import AnyPolicy, PolicySpec, Sources
from wpray.policies.batching import PolicyError
from wpray.policies.factory import build_policy
from wpray.policies.relay import answering
from wpray.provenance import record
from wpray.results.encode import EncodedEpisode, EpisodeContext, encode_episode, encode_error
from wpray.rollout import PolicyOutputError, RolloutSettings, run_trial
from wpray.transport.connection import Address, PolicyServer, RemotePolicy
from wpray.transport.replica_selection import Gpus, ReplicaSelector

ACTOR_LOST = "ActorLostError"  # kind of the error of an attempt whose actor died
_NICENESS = 5  # of env actors
_LOOK_AGAIN_S = 60.0  # how long an env actor keeps its replica before it looks for a less loaded one


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every actor knows of the run."""

    run_id: str
    config: Config
    key: bytes  # both ends of a policy connection prove that they know it
    versions: dict[str, str] = field(default_factory=dict)  # that env actors must have, where nodes may differ
    session: int | None = None  # of the run, which its rows name
    spec: PolicySpec = field(kw_only=True)

    def for_environments(self) -> RunContext:
        """Return what env actors need: not the policy's own settings, whose types may be defined beside its weights."""
        return replace(self, config=self.config.model_copy(update={"policy_args": {}}))


@dataclass(frozen=True, slots=True)
class Host:
    """The machine and process that an actor runs in."""

    name: str
    pid: int
    renderer: str | None
    versions: dict[str, str]
    gpu: str | None = None  # kind of GPU that a policy answers on


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy replica that is ready to answer."""

    host: Host
    seconds: float  # that loading took
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True, slots=True)
class Health:
    """A sign of life."""

    idle_s: float  # since the last step, reply or start of work; 0 when there is nothing to do
    busy_s: float = 0.0  # at work, in all
    loaded: Loaded | None = None  # policy: None while it loads
    notices: tuple[str, ...] = ()  # policy: lines for the run's log


# "request": the policy cannot answer this request, whatever its process (InvalidRequestError).
ErrorFrom = Literal["policy", "request", "environment"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of an assignment: a row either way, and whose fault an error is."""

    episode: EncodedEpisode
    error_from: ErrorFrom | None = None
    error_kind: str = ""  # class of the error
    replica: int | None = None  # that answered last
    incarnation: str | None = None  # of that replica
    error_message: str = ""  # the error and its traceback


class _Failed(Exception):  # noqa: N818
    """An episode has, with an error that becomes its row."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class PolicyActorImpl:
    """Holds the policy and serves it; restarted by Ray if it dies, loading it again."""

    def __init__(self, replica: int, context: RunContext) -> None:
        self._replica, self._context = replica, context
        self._notices = NoticeKeeper()
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        # In a thread of its own: a replica that loads for minutes is told from one that is frozen.
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load").submit(self._load)

    def _load(self) -> Loaded:
        began = time.perf_counter()
        with wrapping_errors(
            _ended_while_loading, Exception, caught=BaseException
        ):  # Ray would take SystemExit for its own
            policy = build_policy(self._context.config)
            self._serve(policy)
        sources = getattr(policy, "sources", Sources())  # most policies are loaded from nothing
        host = this_host(None, getattr(policy, "gpu", None))
        return Loaded(host, time.perf_counter() - began, sources)

    def _serve(self, policy: AnyPolicy) -> None:
        context = self._context
        files: tuple[Path, ...] = getattr(policy, "files", ())  # most policies are loaded from none
        self._hashes = ThreadPoolExecutor(1).submit(lambda: {str(path): record.file_sha256(path) for path in files})
        self._answering = answering(policy, context.config.batching)
        self._remote = policy.spec.remote
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._server = PolicyServer(self._answering, host, context.key)
        self._node = ray.get_runtime_context().get_node_id()

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 by path of what the policy was loaded from; computed beside its work, so it may take a while.

        Raises ConnectionError while the policy loads, OSError if a file has become unreadable.
        """
        self._check_loaded()
        return self._hashes.result()

    def address(self) -> Address:
        """Where env actors connect.

        Raises ConnectionError while the policy loads, ThreadDiedError if this process must be replaced.
        """
        self._check_loaded()
        self._check_threads()
        server = self._server
        return Address(server.host, server.port, self._replica, self._node, server.clients, server.incarnation)

    def _check_loaded(self) -> None:
        if not self._loading.done() or self._loading.exception() is not None:
            raise ConnectionError("the policy is loading")

    def _check_threads(self) -> None:
        self._answering.check()
        self._server.check()

    def gpus(self) -> Gpus:
        """The GPUs that Ray has given to this replica; known before the policy has loaded."""
        context = ray.get_runtime_context()
        return Gpus(context.get_node_id(), tuple(context.get_accelerator_ids().get("GPU", ())))

    def health(self) -> Health:
        """How long the batch in hand has been computing.

        Raises what loading the policy raised, and ThreadDiedError if this process must be replaced.
        """
        if not self._loading.done():
            return Health(0.0, notices=self._notices.take())
        loaded, since = self._loading.result(), None if self._remote else self._answering.busy_since
        self._check_threads()
        idle_s = 0.0 if since is None else time.monotonic() - since
        return Health(idle_s, self._answering.busy_s, loaded, self._notices.take())


class EnvActorImpl:
    """Holds one environment in a process of its own; dies alone."""

    def __init__(self, name: str, context: RunContext, replicas: list[Any]) -> None:
        # A policy that waits for a core keeps its GPU and every environment waiting; an environment only itself.
        os.nice(_NICENESS)
        self._name, self._context, self._selector = name, context, ReplicaSelector(name, replicas)
        self._since = self._looked = time.monotonic()
        self._seen = 0  # replicas that had become ready when it last looked for a less loaded one
        self._working = False

    @ray.method(concurrency_group="work")
    def start(self) -> Host:
        """Imports the simulator and prepares rendering.

        Raises BadInputError on a machine that cannot render, or has another simulator than the run.
        """
        config = self._context.config
        node_versions.check_this_host(self._context.versions, config.suites)
        renderer = prepare_rendering(config, self._selector.gpus_here, self._name)
        self._env: Environment = make_environment(config.suites[0], config.env.protocol)
        self._policy = RemotePolicy(self._context.spec, self._selector.select, self._context.key, self._alive)
        return this_host(renderer)

    @ray.method(concurrency_group="work", enable_task_events=False)  # the driver would tell Ray of each episode thrice
    def run(self, work: tuple[Sequence[Any], int]) -> Attempt:
        """Runs one attempt; an exception of the policy or the environment becomes an error row.

        `work`: an `Assignment.plain()`, and how often a policy replica has become ready in this run; one argument,
        for each has its price.
        """
        assignment, replicas_ready = Assignment.of(work[0]), work[1]
        self._working = True
        self._alive()
        self._spread_load(replicas_ready)
        started, config = datetime.now(UTC), self._context.config
        settings = rollout_settings(config, lambda _: self._alive())
        try:
            with wrapping_errors(_Failed):
                result = run_trial(self._env, self._policy, assignment.trial, settings)
                return Attempt(encode_episode(result, self._row_context(assignment, started), config.record))
        except _Failed as failed:
            return self._failed(assignment, started, failed.error)
        finally:
            self._working = False

    @ray.method(concurrency_group="health")
    def health(self) -> Health:
        """How long ago the last step or reply was; runs beside `run`."""
        return Health(time.monotonic() - self._since if self._working else 0.0)

    def _failed(self, assignment: Assignment, started: datetime, error: Exception) -> Attempt:
        kind, trace = type(error).__name__, "".join(traceback.format_exception(error))
        if isinstance(error, PolicyError):
            kind, trace = error.kind, error.trace
        message = f"{error.message if isinstance(error, PolicyError) else error}\n{trace}"
        row = encode_error(assignment.trial, self._row_context(assignment, started), kind, message)
        return Attempt(row, _origin(error), kind, self._policy.replica, self._policy.incarnation, message)

    def _alive(self) -> None:
        self._since = time.monotonic()

    def _spread_load(self, replicas_ready: int) -> None:
        """Between episodes, when a replica has come (back) and now and then: has it less to do than this one's?"""
        now = time.monotonic()
        if replicas_ready == self._seen and now - self._looked < _LOOK_AGAIN_S:
            return
        self._seen, self._looked = replicas_ready, now
        incarnation = self._policy.connected_to
        if incarnation is not None and self._selector.should_rebalance(incarnation):
            self._policy.disconnect()

    def _row_context(self, assignment: Assignment, started: datetime) -> EpisodeContext:
        return row_context(self._context, assignment, platform.node(), started)


def lost_row(context: RunContext, assignment: Assignment, reason: str) -> EncodedEpisode:
    """The error row of a trial whose actors all died."""
    row = row_context(context, assignment, None, datetime.now(UTC))
    return encode_error(assignment.trial, row, ACTOR_LOST, reason)


def row_context(context: RunContext, assignment: Assignment, node: str | None, started: datetime) -> EpisodeContext:
    """What a row that ends now says besides the episode."""
    config = context.config
    return EpisodeContext(
        run_id=context.run_id,
        policy=config.policy,
        checkpoint=config.joint_checkpoint or config.vlm_checkpoint,
        protocol=config.env.protocol,
        node=node,
        worker=assignment.worker,
        attempt=assignment.attempt,
        started_at=started,
        ended_at=datetime.now(UTC),
        attempt_errors=assignment.errors,
        session=context.session,
    )


def rollout_settings(config: Config, on_step: Callable[[int], None] | None = None) -> RolloutSettings:
    """What `config` says of an episode."""
    return RolloutSettings(config.num_steps_wait, config.record != "none", on_step, loop_options(config))


_remote: Any = ray.remote  # its stubs know only some of its options
# A call that a dying replica had in hand is not repeated by Ray: whoever asked asks again, perhaps another replica.
PolicyActor = _remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=6)(PolicyActorImpl)
# An env actor that dies is replaced by a new one, not restarted: the driver must know, for its trial in hand is lost.
as_actor: Any = _remote(num_cpus=1, max_restarts=0, concurrency_groups={"work": 1, "health": 1})
EnvActor = as_actor(EnvActorImpl)


def prepare_rendering(config: Config, owned: Callable[[], list[str]] = list, name: str = "") -> str | None:
    """Sets this process up to render the configured suite; returns the renderer. Raises BadInputError if it cannot.

    `owned`: this node's GPUs that policies have, to be avoided; `name` spreads environments over the others.
    """
    if FAKE_SUITE in config.suites:
        return None
    from wpray.system import egl_devices, gl

    renderer = gl.select_renderer(config.env.renderer)
    gl.prepare(renderer)
    egl_devices.set_egl_device(owned=owned, name=name)
    return renderer


def _origin(error: Exception) -> ErrorFrom:
    if isinstance(error, PolicyError) and error.invalid:
        return "request"
    return "policy" if isinstance(error, PolicyError | PolicyOutputError) else "environment"


def _ended_while_loading(error: BaseException) -> Exception:
    return RuntimeError(f"the policy ended its process while it loaded: {type(error).__name__}: {error}")


def this_host(renderer: str | None, gpu: str | None = None) -> Host:
    """Return this machine and process, with the versions that it has."""
    return Host(platform.node(), os.getpid(), renderer, record.package_versions(), gpu)
