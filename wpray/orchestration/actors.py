"""Ray actors: an env actor runs episodes, a policy actor answers requests. Other rooms do the work."""

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
from typing import Any, cast

import ray

from wpray.benchmarks.base import Drawer, Environment, RemotelyDrawn
from wpray.cluster import node_versions
from wpray.config import Config
from wpray.errors import BadInputError, wrapping_errors
from wpray.orchestration.loop_options import loop_options
from wpray.orchestration.notices import NoticeKeeper
from wpray.orchestration.scheduler import Assignment
from wpray.policies.base import AnyPolicy, PolicySpec, Sources
from wpray.policies.factory import build_policy
from wpray.policies.relay import Answering, answering
from wpray.policies.request_queue import PolicyError
from wpray.provenance import record
from wpray.results.encode import EncodedEpisode, EpisodeContext, encode_episode, encode_error
from wpray.rollout import PolicyOutputError, RolloutSettings, run_trial
from wpray.system import egl_devices, gl
from wpray.system.hardware import free_memory, own_memory
from wpray.system.time_slices import take_long_slices
from wpray.transport.connection import Address, Client, Server
from wpray.transport.draw_connection import DrawError, DrawServer, SocketDrawClient
from wpray.transport.drawing import DrawingThread
from wpray.transport.policy_connection import PolicyServer, SocketPolicyClient
from wpray.transport.replica_selection import ReplicaGpus, ReplicaSelector
from wpray.types import Failure, FailureOrigin

ACTOR_LOST = "ActorLostError"  # kind of the error of an attempt whose actor died
_ENV_ACTOR_NICENESS = 19  # the highest
_GROWTH, _RESERVE = 1.25, 2**30  # of another policy's memory, and bytes that stay free beside it
_REBALANCE_S = 60.0  # interval of searches for a less loaded replica


@dataclass(frozen=True, slots=True)
class RunContext:
    """Facts of the run that every actor needs."""

    run_id: str
    config: Config
    key: bytes  # secret of the run, which both ends of a policy connection prove to hold
    versions: dict[str, str] = field(default_factory=dict)  # required of env actors, where nodes may differ
    session: int | None = None  # index in run.json, for the rows
    spec: PolicySpec = field(kw_only=True)

    def for_environments(self) -> RunContext:
        """Return what env actors need: not the policy's own settings, whose types may be defined beside its weights."""
        return replace(self, config=self.config.model_copy(update={"policy_args": {}}))


@dataclass(frozen=True, slots=True)
class Renderers:
    """Render actors, as env actors reach them."""

    handles: list[Any]  # of Ray
    key: bytes  # secret, which both ends of a connection prove to hold


@dataclass(frozen=True, slots=True)
class ActorHost:
    """Machine and process of an actor."""

    name: str
    pid: int
    renderer: str | None
    versions: dict[str, str]
    gpu: str | None = None  # kind of GPU that a policy answers on


@dataclass(frozen=True, slots=True)
class LoadedReplica:
    """Policy replica that is ready to answer."""

    host: ActorHost
    load_seconds: float
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True, slots=True)
class ActorHealth:
    """Heartbeat of an actor."""

    idle_s: float  # since the last step, reply or start of work; 0 without work
    busy_s: float = 0.0  # total time at work
    loaded: LoadedReplica | None = None  # policy: None while it loads
    notices: tuple[str, ...] = ()  # policy: lines for the run's log


@dataclass(frozen=True, slots=True)
class PolicyMemory:
    """Memory of a policy actor's process, in bytes, and what is left on its machine and its GPU."""

    used: int
    free: int | None  # None: the system hides it
    gpu: tuple[int, int] | None = None  # used, free
    has_gpu: bool = False

    @property
    def has_room(self) -> bool:
        """True if another policy like it fits beside it; False if that is not known."""
        on_gpu = self.gpu is not None and _fits(*self.gpu) if self.has_gpu else True
        return self.free is not None and _fits(self.used, self.free) and on_gpu


def _fits(used: int, free: int) -> bool:
    return free > _GROWTH * used + _RESERVE


@dataclass(frozen=True, slots=True)
class Attempt:
    """Result of an assignment: a row, and the failure that it holds, if any."""

    episode: EncodedEpisode
    failure: Failure | None = None
    replica: int | None = None  # number of the replica that answered last
    incarnation: str | None = None  # of that replica


class _Failed(Exception):  # noqa: N818
    """Error of an episode, which becomes its row."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class ServingActorImpl:
    """Server of requests of env actors; Ray restarts it if it dies, and it loads again."""

    _answering: Answering | DrawingThread
    _server: Server
    _relays = False  # True if other processes answer, so that a long wait is no hang

    def __init__(self, replica: int, context: RunContext) -> None:
        self._replica, self._context = replica, context
        self._notices = NoticeKeeper()
        # Loading has its own thread, so that `health` answers while it takes minutes.
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load").submit(self._load)

    def address(self) -> Address:
        """Return where env actors connect.

        Raises ConnectionError while it loads, ThreadDiedError if this process must be replaced.
        """
        self._check_loaded()
        self._check_threads()
        server = self._server
        return Address(server.host, server.port, self._replica, self._node, server.clients, server.incarnation)

    def health(self) -> ActorHealth:
        """Return how long the current requests have been in work.

        Raises what loading raised, and ThreadDiedError if this process must be replaced.
        """
        if not self._loading.done():
            return ActorHealth(0.0, notices=self._notices.take())
        loaded, since = self._loading.result(), None if self._relays else self._answering.busy_since
        self._check_threads()
        idle_s = 0.0 if since is None else time.monotonic() - since
        return ActorHealth(idle_s, self._answering.busy_s, loaded, self._notices.take())

    def _load(self) -> LoadedReplica:
        began = time.perf_counter()
        with wrapping_errors(
            _ended_while_loading, Exception, caught=BaseException
        ):  # Ray would handle a SystemExit itself
            host, sources = self._begin()
            self._node = ray.get_runtime_context().get_node_id()
        return LoadedReplica(host, time.perf_counter() - began, sources)

    def _begin(self) -> tuple[ActorHost, Sources]:
        """Load, and serve from now on."""
        raise NotImplementedError

    def _check_loaded(self) -> None:
        if not self._loading.done() or self._loading.exception() is not None:
            raise ConnectionError("it is loading")

    def _check_threads(self) -> None:
        self._answering.check()
        self._server.check()


class PolicyActorImpl(ServingActorImpl):
    """Server of a policy."""

    def __init__(self, replica: int, context: RunContext) -> None:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        super().__init__(replica, context)

    def _begin(self) -> tuple[ActorHost, Sources]:
        policy = build_policy(self._context.config)
        self._serve(policy)
        sources = getattr(policy, "sources", Sources())  # most policies have no files
        return this_host(None, getattr(policy, "gpu", None)), sources

    def _serve(self, policy: AnyPolicy) -> None:
        context = self._context
        files: tuple[Path, ...] = getattr(policy, "files", ())  # most policies have none
        self._hashes = ThreadPoolExecutor(1).submit(lambda: {str(path): record.file_sha256(path) for path in files})
        self._answering = answering(policy, context.config.batching)
        self._relays = policy.spec.remote
        self._gpu_memory: Callable[[], tuple[int, int] | None] = getattr(policy, "gpu_memory", lambda: None)
        self._server = PolicyServer(self._answering, own_address(), context.key)

    def file_hashes(self) -> dict[str, str]:
        """Return the SHA-256 by path of what the policy was loaded from; it is computed beside its work.

        Raises ConnectionError while the policy loads, OSError if a file has become unreadable.
        """
        self._check_loaded()
        return self._hashes.result()

    def gpus(self) -> ReplicaGpus:
        """Return the GPUs that Ray has given to this replica; they are known before the policy has loaded."""
        context = ray.get_runtime_context()
        return ReplicaGpus(context.get_node_id(), tuple(context.get_accelerator_ids().get("GPU", ())))

    def memory(self) -> PolicyMemory:
        """Return the memory of this process and what is left. Raises ConnectionError while the policy loads."""
        self._check_loaded()
        has_gpu = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
        return PolicyMemory(own_memory(), free_memory(), self._gpu_memory(), has_gpu)


class RenderActorImpl(ServingActorImpl):
    """Server of a benchmark's drawer, which draws the observations of many environments."""

    def __init__(self, replica: int, context: RunContext, place: int) -> None:
        """Draw on this node's GPU number `place`, counted from the last, because policies take the first ones.

        The arguments hold no actors: Ray could not restart this one once they are gone.
        """
        self._place = place
        super().__init__(replica, context)

    def _begin(self) -> tuple[ActorHost, Sources]:
        context, name = self._context, f"render-{self._replica}"
        node_versions.check_this_host(context.versions, context.config)
        renderer = prepare_rendering(context.config, name=name, place=-1 - self._place)
        self._answering = DrawingThread(self._make)
        self._answering.wait_for_the_drawer()
        self._server = DrawServer(self._answering, own_address(), context.key)
        return this_host(renderer), Sources()

    def _make(self) -> Drawer:
        drawer = self._context.config.load_benchmark().make_drawer()
        if drawer is None:
            raise BadInputError("benchmark: it says draws_remotely and has no make_drawer; use env.render: local")
        return drawer


class EnvActorImpl:
    """Owner of one environment, in a process of its own, so that a crash costs one episode."""

    def __init__(self, name: str, context: RunContext, replicas: list[Any], renderers: Renderers | None = None) -> None:
        """Take the policy's `replicas`, and what draws the pictures; None: the environment."""
        # A policy that waits for a core delays every environment, an environment only itself.
        os.nice(_ENV_ACTOR_NICENESS)
        self._name, self._context, self._selector = name, context, ReplicaSelector(name, replicas)
        self._renderers = renderers
        self._drawing: list[tuple[Client, ReplicaSelector]] = []  # connection to render actors, if they draw
        self._active_at = self._rebalanced_at = time.monotonic()
        self._replicas_seen = 0  # times that one had become ready at the last search for a less loaded one
        self._working = False

    @ray.method(concurrency_group="work")
    def start(self) -> ActorHost:
        """Import the simulator and prepare rendering, unless render actors draw.

        Raises BadInputError on a machine that cannot render, or has another simulator than the run.
        """
        take_long_slices()  # of this thread, which runs the episodes
        config, renderers = self._context.config, self._renderers
        node_versions.check_this_host(self._context.versions, config)
        self._renderer = None
        if renderers is None:
            self._renderer = prepare_rendering(config, self._selector.gpus_here, self._name)
        elif config.load_benchmark().uses_opengl:
            gl.prepare_without()
        self._env: Environment = config.load_benchmark().make_environment(config.suites[0], config.env.protocol)
        if renderers is not None:
            selector = ReplicaSelector(self._name, renderers.handles)
            client = SocketDrawClient(selector.select, renderers.key, self._alive)
            cast(RemotelyDrawn, self._env).draw_with(client)
            self._drawing = [(client, selector)]
        return self._connect()

    @ray.method(concurrency_group="work")
    def adopt(self, context: RunContext, replicas: list[Any]) -> ActorHost:
        """Serve another run, with the environment that is there: its scene stays compiled."""
        self._policy.disconnect()
        self._context, self._selector = context, ReplicaSelector(self._name, replicas)
        self._replicas_seen = 0
        return self._connect()

    def _connect(self) -> ActorHost:
        """Prepare requests to the run's policy; the first one connects."""
        self._policy = SocketPolicyClient(self._context.spec, self._selector.select, self._context.key, self._alive)
        return this_host(self._renderer)

    @ray.method(
        concurrency_group="work", enable_task_events=False
    )  # task events would cost the driver three messages an episode
    def run(self, work: tuple[Sequence[Any], int]) -> Attempt:
        """Run one attempt; an exception of the policy or the environment becomes an error row.

        `work` holds an `Assignment.plain()` and how often a policy replica has become ready in this run. It is one
        argument because each argument costs the driver time.
        """
        assignment, replicas_ready = Assignment.of(work[0]), work[1]
        self._working = True
        self._alive()
        self._spread_load(replicas_ready)
        started, config = datetime.now(UTC), self._context.config
        settings = rollout_settings(config, lambda _: self._alive(), assignment.trial.task.suite)
        try:
            with wrapping_errors(_Failed):
                result = run_trial(self._env, self._policy, assignment.trial, settings)
                return Attempt(encode_episode(result, self._row_context(assignment, started), config.record))
        except _Failed as failed:
            return self._failed(assignment, started, failed.error)
        finally:
            self._working = False

    @ray.method(concurrency_group="health")
    def health(self) -> ActorHealth:
        """Return how long ago the last step or reply was; it runs beside `run`."""
        return ActorHealth(time.monotonic() - self._active_at if self._working else 0.0)

    def _failed(self, assignment: Assignment, started: datetime, error: Exception) -> Attempt:
        failure = _failure_of(error)
        row = encode_error(assignment.trial, self._row_context(assignment, started), failure)
        return Attempt(row, failure, self._policy.replica, self._policy.incarnation)

    def _alive(self) -> None:
        self._active_at = time.monotonic()

    def _spread_load(self, replicas_ready: int) -> None:
        """Disconnect from a policy replica or render actor that should be left for a less loaded one.

        This is checked between episodes: after one has become ready, and once a minute.
        """
        now = time.monotonic()
        if replicas_ready == self._replicas_seen and now - self._rebalanced_at < _REBALANCE_S:
            return
        self._replicas_seen, self._rebalanced_at = replicas_ready, now
        for client, selector in ((self._policy, self._selector), *self._drawing):
            incarnation = client.connected_to
            if incarnation is not None and selector.should_rebalance(incarnation):
                client.disconnect()

    def _row_context(self, assignment: Assignment, started: datetime) -> EpisodeContext:
        return row_context(self._context, assignment, platform.node(), started)


def lost_row(context: RunContext, assignment: Assignment, failure: Failure) -> EncodedEpisode:
    """Return the error row of a trial whose env actor died."""
    row = row_context(context, assignment, None, datetime.now(UTC))
    return encode_error(assignment.trial, row, failure)


def row_context(context: RunContext, assignment: Assignment, node: str | None, started: datetime) -> EpisodeContext:
    """Return what a row that ends now holds besides the episode."""
    config, benchmark = context.config, context.config.load_benchmark()
    return EpisodeContext(
        run_id=context.run_id,
        policy=config.policy,
        checkpoint=context.spec.checkpoint,
        protocol=config.env.protocol,
        node=node,
        worker=assignment.worker,
        attempt=assignment.attempt,
        started_at=started,
        ended_at=datetime.now(UTC),
        attempt_errors=assignment.errors,
        session=context.session,
        planner=context.spec.planner,
        state_columns=benchmark.state_columns(),
        action=benchmark.action_spec(assignment.trial.task.suite),
    )


def rollout_settings(
    config: Config, on_step: Callable[[int], None] | None = None, suite: str | None = None
) -> RolloutSettings:
    """Return the settings of an episode of `suite`, by default of the first one."""
    action = config.load_benchmark().action_spec(suite or config.suites[0])
    return RolloutSettings(config.num_steps_wait, config.record != "none", on_step, loop_options(config), action)


_remote: Any = ray.remote  # its stubs lack some of its options
# Ray does not repeat the call of a dying replica: the caller retries, possibly with another replica.
_as_server: Any = _remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=6)
PolicyActor, RenderActor = _as_server(PolicyActorImpl), _as_server(RenderActorImpl)
# A dead env actor is replaced, not restarted, because the driver must give its trial to another.
as_actor: Any = _remote(num_cpus=1, max_restarts=0, concurrency_groups={"work": 1, "health": 1})
EnvActor = as_actor(EnvActorImpl)


def prepare_rendering(
    config: Config, owned: Callable[[], list[str]] = list, name: str = "", place: int | None = None
) -> str | None:
    """Set this process up to render the configured suite; return the renderer.

    `owned` returns this node's GPUs that policies have, which are avoided; `name` spreads environments over the others,
    and `place`, if given, counts through them.
    Raises BadInputError if this machine cannot render.
    """
    if not config.load_benchmark().uses_opengl:
        return None
    renderer = gl.select_renderer(config.env.renderer)
    gl.prepare(renderer)
    egl_devices.set_egl_device(owned=owned, name=name, place=place)
    return renderer


def _failure_of(error: Exception) -> Failure:
    if isinstance(error, PolicyError | DrawError):
        return error.failure
    origin: FailureOrigin = "policy" if isinstance(error, PolicyOutputError) else "environment"
    return Failure(origin, type(error).__name__, str(error), "".join(traceback.format_exception(error)))


def _ended_while_loading(error: BaseException) -> Exception:
    return RuntimeError(f"the actor ended its process while it loaded: {type(error).__name__}: {error}")


def own_address() -> str:
    """Return the address of this node, at which other nodes reach it."""
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return host


def this_host(renderer: str | None, gpu: str | None = None) -> ActorHost:
    """Return this machine and process, with the versions that it has."""
    return ActorHost(platform.node(), os.getpid(), renderer, record.package_versions(), gpu)
