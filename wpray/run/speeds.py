"""Speeds that a forecast goes by: those of an earlier run of the policy, else figures that were measured for wpray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from wpray.benchmarks.factory import benchmark_of
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.policies.drawing import policy_gpus
from wpray.policies.environments import Host, replicas
from wpray.results import Run, load
from wpray.results.pace import steady_per_min
from wpray.results.sessions import gpus, sessions
from wpray.run.forecast import Requests, RunLayout, Speeds, forecast

_RUNS = Path("runs")
_STEPS, _OBSERVATIONS = 290, 17  # of an episode of libero_object that takes all its steps
# An env actor's core: steps of 4.7 ms, observations that a GPU renders in 5 ms, a reset of 50 ms. OSMesa takes 0.1 s
# for each of an observation's two frames. Beside 15 others, a step takes 1.3 times as long as alone.
_ENV_S = _STEPS * 0.0047 + _OBSERVATIONS * 0.005 + 0.05
_OSMESA_S = _OBSERVATIONS * 2 * 0.1
_CROWDING = 0.3 / 15
# A server's policy: 58 requests, each after 5 of the steps above. The time of one is a guess, which `doctor` replaces.
_REQUESTS, _REQUEST_S = 58, 0.1
_GUESSED = (
    f"built-in figures ({_REQUESTS} requests an episode, {_REQUEST_S:g} s each), as no finished run was found; doctor "
    "measures a request"
)
_LEAST_SIZES = 3  # of batches, to tell what a batch takes from what each of its requests takes


@dataclass(frozen=True, slots=True)
class _Card:
    """Seconds of a call on a GPU that does nothing else: `fixed + each * batch` (wpray/bench/README.md, Policy)."""

    name: str
    plan: tuple[float, float]
    segment: tuple[float, float]
    chunk: tuple[float, float]  # of pi0


_CARDS = (
    _Card("H200", (0.097, 0.0051), (0.008, 0.0052), (0.046, 0.0074)),
    _Card("H100", (0.119, 0.0054), (0.009, 0.0055), (0.046, 0.0074)),  # chunk: the H200's
)
# An episode asks for 2.9 plans; these and 13.9 further requests compute a segment.
_PLANS, _SEGMENTS = 2.9, 16.8
_CHUNK_STEPS = 5  # executed of a chunk, where the policy does not say
# In a run whose environments draw on the same GPU, calls take so many times as long as alone.
_PLAN_SLOWER, _SEGMENT_SLOWER = 1.7, 1.26
_LOAD_S = 29.5  # in a run, of 13 GB of weights and the start of the first episodes beside it


def speeds_for(config: Config, spec: PolicySpec, host: Host, folder: Path) -> Speeds:
    """Return the speeds of the newest run of the policy, in `folder` or under runs/, else the built-in ones."""
    found = _built_in(config, spec, host)
    run = _alike(config, host, folder)
    return found if run is None else _Measured(run, config, spec, host).speeds(found)


def _built_in(config: Config, spec: PolicySpec, host: Host) -> Speeds:
    crowding, steps = 0.0 if config.load_benchmark().stand_in else _CROWDING, _steps(config)
    length = steps / _STEPS
    if spec.servers:
        asking_s = length * _REQUESTS * _REQUEST_S
        return Speeds(length * _ENV_S, asking_s, asking_s, _GUESSED, crowding=crowding)
    on_gpu = policy_gpus(config, spec) > 0
    draws = spec.images and config.load_benchmark().uses_opengl
    # A cluster's nodes and a machine that lacks the policy's GPU are taken to have one, and to draw on it.
    with_egl = config.env.renderer != "osmesa" and (on_gpu or host.gpus > 0)
    env_s = length * (_ENV_S + (_OSMESA_S if draws and not with_egl else 0.0))
    said, requests = "a policy that answers at once", tuple[Requests, ...]()
    if on_gpu:
        card, gpu = _card(host)
        model = "a Waypoint VLA of full size" if spec.kind == "waypoints" else "a chunk policy of the size of pi0"
        said = f"{gpu}, {model}"
        requests = _requests(spec, card, length, draws and with_egl)
    drawn = f", {'EGL' if with_egl else 'OSMesa'}" if draws else ""
    source = f"built-in figures (assuming {steps} steps an episode{drawn}, {said}), as no finished run was found"
    return Speeds(env_s, 0.0, 0.0, source, requests, crowding, _LOAD_S if on_gpu else 0.0)


def _steps(config: Config) -> int:
    """Return the control steps of an episode that takes all of them, the mean of the suites."""
    benchmark = config.load_benchmark()
    if benchmark.stand_in:
        return _STEPS
    limits = [config.max_steps_of(suite) or benchmark.size(suite).max_steps for suite in config.suites]
    return config.num_steps_wait + round(sum(limits) / len(limits))


def _card(host: Host) -> tuple[_Card, str]:
    """Return the figures of this machine's GPU, or of the one that it is assumed to equal, and which it is."""
    card = next((card for card in _CARDS if card.name in host.gpu_model), None)
    if card is not None:
        return card, f"an {card.name}"
    return _CARDS[0], f"{host.gpu_model or 'a GPU'} as fast as an {_CARDS[0].name}"


def _requests(spec: PolicySpec, card: _Card, length: float, shared: bool) -> tuple[Requests, ...]:
    """Return the requests of an episode; `shared`: environments draw on the policy's GPU."""
    plan, segment = (_PLAN_SLOWER, _SEGMENT_SLOWER) if shared else (1.0, 1.0)
    if spec.kind == "chunk":
        return (_times(length * _STEPS / (spec.execute_steps or _CHUNK_STEPS), card.chunk, segment),)
    return _times(length * _PLANS, card.plan, plan), _times(length * _SEGMENTS, card.segment, segment)


def _times(number: float, call: tuple[float, float], slower: float) -> Requests:
    return Requests(number, slower * call[0], slower * call[1])


def _alike(config: Config, host: Host, folder: Path) -> Run | None:
    """Return the newest run of the policy on this suite, else on another of the same simulator.

    Runs on another kind of GPU do not count.
    """
    alike: Run | None = None
    for path in _newest_first([folder, *_RUNS.glob("*")]):
        run = _readable(path, config)
        if run is None or (host.gpu_model and gpus(sessions(run.info)) - {host.gpu_model}):
            continue
        theirs = run.info["config"]["task_suite"]
        if theirs == config.task_suite or theirs in config.suites:
            return run
        if alike is None and not config.load_benchmark().stand_in and _takes_as_long(run):
            alike = run
    return alike


def _takes_as_long(run: Run) -> bool:
    """Return True if the run's episodes take the time of a simulator, as far as its benchmark is known here."""
    theirs = run.info["config"]
    named = theirs["task_suite"]
    try:
        return not benchmark_of(
            named[0] if isinstance(named, list) else named, theirs.get("benchmark", "auto")
        ).stand_in
    except BadInputError:
        return False


def _newest_first(paths: list[Path]) -> Iterator[Path]:
    infos = {path: path / "run.json" for path in paths}
    there = {path: info.stat().st_mtime for path, info in infos.items() if info.exists()}
    return iter(sorted(there, key=lambda path: there[path], reverse=True))


def _readable(path: Path, config: Config) -> Run | None:
    """Return a run of the same policy that has episodes with an outcome."""
    try:
        run = load(path)
    except BadInputError:
        return None
    theirs = run.info.get("config")
    if not isinstance(theirs, dict) or theirs.get("policy") != config.policy or "task_suite" not in theirs:
        return None
    return run if pc.any(pc.not_equal(run.episodes["status"], "error")).as_py() else None


class _Measured:
    """Episodes of an earlier run, which is taken to have had the cores and policy actors of this machine."""

    def __init__(self, run: Run, config: Config, spec: PolicySpec, host: Host) -> None:
        self._episodes = run.episodes.filter(pc.not_equal(run.episodes["status"], "error"))
        decisions = run.decisions
        self._asked = decisions.filter(pc.greater(decisions["wait_s"], 0))  # a plan's first segment is not requested
        self._source, self._count = f"{_counted(self._episodes.num_rows)} in {run.path}", self._episodes.num_rows
        self._joins, self._cores = config.ray.address is not None, host.cores
        self._layout = RunLayout(self._workers, spec.servers or replicas(config, spec, host.gpus), 1, 1, host.cores)
        self._steady = steady_per_min(self._episodes)  # None: too short to tell

    @property
    def _workers(self) -> int:
        return len(set(self._episodes["worker"].to_pylist()))

    def speeds(self, built_in: Speeds) -> Speeds:
        """Return the run's speeds; what it does not tell is as in `built_in`."""
        waited, queued = _sum(self._asked["wait_s"]), _sum(self._asked["queue_s"])
        found = Speeds(
            env_s=(_sum(self._episodes["wall_s"]) - waited) / self._count,
            answer_s=max(0.0, waited - queued) / self._count,
            policy_s=_sum(pc.divide(self._asked["compute_s"], self._asked["batch_size"])) / self._count,
            source=self._source,
            requests=self._requests(),
            load_s=built_in.load_s,
        )
        return (
            found if self._joins or self._steady is None else self._scaled(self._apart(found, built_in), self._steady)
        )

    def _requests(self) -> tuple[Requests, ...]:
        """Return what each kind of request takes; nothing if its batches were too alike to tell."""
        found = []
        for kind in sorted(set(self._asked["kind"].to_pylist())):
            rows = self._asked.filter(pc.equal(self._asked["kind"], kind))
            sizes, seconds = (rows[name].to_numpy().astype(float) for name in ("batch_size", "compute_s"))
            if len(set(sizes)) < _LEAST_SIZES:
                return ()
            # Each request has a row, so a row counts as its share of the batch.
            each_s, fixed_s = np.polyfit(sizes, seconds, 1, w=np.sqrt(1 / sizes))
            if each_s < 0 or fixed_s < 0:
                each_s, fixed_s = max(0.0, each_s), max(0.0, float(np.mean(seconds - max(0.0, each_s) * sizes)))
            found.append(Requests(rows.num_rows / self._count, float(fixed_s), float(each_s)))
        return tuple(found)

    def _apart(self, found: Speeds, built_in: Speeds) -> Speeds:
        """Return the speeds with the time that an episode takes on a core which it shares with no other."""
        stepping = min(float(self._workers), (self._steady or 0.0) / 60 * found.env_s)
        share = min(1.0, self._cores / max(1.0, stepping))
        others = max(0.0, min(stepping, self._cores) - 1)
        env_s = found.env_s * share / (1 + built_in.crowding * others)
        return replace(found, env_s=env_s, crowding=built_in.crowding)

    def _scaled(self, found: Speeds, steady: float) -> Speeds:
        """Return speeds with which the forecast of the run itself is what it measured."""
        if not found.requests:
            return found
        ratio = forecast(self._count, found, self._layout).per_min / steady
        slower = tuple(Requests(one.an_episode, ratio * one.fixed_s, ratio * one.each_s) for one in found.requests)
        return replace(found, env_s=ratio * found.env_s, requests=slower)


def _sum(column: Any) -> float:
    return float(pc.sum(column).as_py() or 0.0)


def _counted(episodes: int) -> str:
    return f"{episodes} episode{'' if episodes == 1 else 's'}"
