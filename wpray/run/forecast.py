"""Forecast of a run from measured episodes: a closed queue, without any actor or file.

Environments go round between two stations. At the cores they step, and share them if there are fewer; each busy core
slows the others (`crowding`), because they share the memory. At the policy they wait, and its batches grow with the
number that waits there. The pace is the one at which both stations serve as many episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Resource = Literal["env actors", "policy"]

# Share of the environments waiting at a policy actor that are answered with one of them. The others ask for another
# kind, or came too late. With it the model is within 20% of every run that was measured (tests/run/test_forecast.py).
_JOIN = 0.3
_ADDED, _GAINED = 1.25, 1.05  # so many times the environments must bring so many times the episodes to be of use
_HALVINGS = 60  # of the interval in which the balance lies


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one kind. A batch of `n` takes `fixed_s + each_s * n`."""

    an_episode: float
    fixed_s: float
    each_s: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """Mean seconds of an episode."""

    env_s: float  # on its env actor's core: reset, steps, renders, recording, writing
    answer_s: float  # waiting for policies that have no other work
    policy_s: float  # of a policy actor's time: its requests' shares of their batches
    source: str  # run or figures that these are taken from
    requests: tuple[Requests, ...] = ()  # if known, they replace `answer_s` and `policy_s`
    crowding: float = 0.0  # share by which each further busy core prolongs `env_s`
    load_s: float = 0.0  # from the start of the actors until the policy answers


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Number of actors of a run, and what each reserves."""

    env_actors: int
    policy_actors: int
    env_cpus: float  # reserved by each env actor
    policy_gpus: float  # reserved by each policy actor
    cores: int | None = None  # shared by the env actors; None: a core each
    max_batch: int = 32  # most requests of a batch


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected time and cost of a run."""

    episodes: int
    seconds: float
    cpu_hours: float  # reserved by the env actors
    gpu_hours: float  # reserved by the policy actors
    bottleneck: Resource
    per_min: float  # episodes a minute, in the middle of the run
    env_actors_to_balance: int | None  # so many keep these policy actors busy; None: no number does
    policy_actors_to_balance: int  # so many are kept busy by these env actors
    load_s: float = 0.0  # from the actors' start until the policy answers
    span_s: float = 0.0  # from the actors' start to the last episode's end: with loading, and with the last stragglers


@dataclass(frozen=True, slots=True)
class _Balance:
    """Point at which both stations serve as many episodes, and what limits it."""

    rate: float  # episodes a second
    env_rate: float  # if requests were never queued
    policy_s: float  # an episode's share of a policy actor's time
    policy_rate: float  # if the policy actors were never idle


def forecast(episodes: int, speeds: Speeds, layout: RunLayout) -> Forecast:
    """Return what `episodes` more episodes take.

    The slower of the two resources sets the pace, and the last episode ends alone. Raises ValueError for a layout
    without actors.
    """
    if min(layout.env_actors, layout.policy_actors) < 1:
        raise ValueError("a run needs an env actor and a policy actor at least")
    env_actors = min(layout.env_actors, max(1, episodes))
    found = _balance(speeds, layout, env_actors)
    seconds = max(episodes / found.rate, _alone_s(speeds)) if episodes else 0.0
    hours = seconds / 3600
    stragglers_s = env_actors / found.rate / 2  # they end one after the other over the time of an episode
    return Forecast(
        episodes=episodes,
        seconds=seconds,
        cpu_hours=hours * env_actors * layout.env_cpus,
        gpu_hours=hours * layout.policy_actors * layout.policy_gpus,
        bottleneck="env actors" if found.env_rate <= found.policy_rate else "policy",
        per_min=60 * found.rate,
        env_actors_to_balance=_env_actors_for(found.policy_rate, speeds, layout),
        policy_actors_to_balance=max(1, math.ceil(_rounded(found.env_rate * found.policy_s))),
        load_s=speeds.load_s,
        span_s=speeds.load_s + seconds + stragglers_s if episodes else 0.0,
    )


def env_pace(speeds: Speeds, env_actors: float, cores: int | None) -> float:
    """Return the episodes a second of env actors that are never without an answer."""
    busy = env_actors if cores is None else min(env_actors, cores)
    crowded = 1.0 if cores is None else 1 + speeds.crowding * max(0.0, busy - 1)
    return busy / (speeds.env_s * crowded)


def _balance(speeds: Speeds, layout: RunLayout, env_actors: int) -> _Balance:
    least, most = 0.0, float(env_actors)  # env actors that do not wait
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        if env_pace(speeds, middle, layout.cores) < _policy_pace(speeds, env_actors - middle, layout):
            least = middle
        else:
            most = middle
    rate, batch = env_pace(speeds, least, layout.cores), _batch(env_actors - least, layout)
    policy_s = _policy_s(speeds, batch)
    alone = env_actors / (env_actors / env_pace(speeds, env_actors, None) + _answer_s(speeds, batch))
    return _Balance(
        rate=rate,
        env_rate=min(env_pace(speeds, env_actors, layout.cores), alone),
        policy_s=policy_s,
        policy_rate=layout.policy_actors / policy_s if policy_s > 0 else math.inf,
    )


def _policy_pace(speeds: Speeds, waiting: float, layout: RunLayout) -> float:
    """Return the episodes a second of policy actors at which `waiting` environments are."""
    policy_s, actors = _policy_s(speeds, _batch(waiting, layout)), layout.policy_actors
    most = actors / policy_s if policy_s > 0 else math.inf
    if speeds.requests:
        return most * min(1.0, waiting / actors)
    return min(most, waiting / speeds.answer_s if speeds.answer_s > 0 else math.inf)


def _batch(waiting: float, layout: RunLayout) -> float:
    """Return the mean size of batches where so many environments wait."""
    others = max(0.0, waiting / layout.policy_actors - 1)
    return min(layout.max_batch, 1 + _JOIN * others)


def _policy_s(speeds: Speeds, batch: float) -> float:
    if not speeds.requests:
        return speeds.policy_s
    return sum(kind.an_episode * (kind.fixed_s / batch + kind.each_s) for kind in speeds.requests)


def _answer_s(speeds: Speeds, batch: float) -> float:
    if not speeds.requests:
        return speeds.answer_s
    return sum(kind.an_episode * (kind.fixed_s + kind.each_s * batch) for kind in speeds.requests)


def _alone_s(speeds: Speeds) -> float:
    return speeds.env_s + _answer_s(speeds, 1)


def _env_actors_for(rate: float, speeds: Speeds, layout: RunLayout) -> int | None:
    """Return how many env actors keep the policy busy. More of them never stop bringing a little if batches grow."""
    if speeds.requests:
        return _useful(speeds, layout)
    if math.isinf(rate) or (layout.cores is not None and env_pace(speeds, layout.cores, layout.cores) < rate):
        return None
    return max(1, math.ceil(_rounded(rate * _alone_s(speeds))))


def _useful(speeds: Speeds, layout: RunLayout) -> int | None:
    """Return the number from which a quarter more brings less than a twentieth; None if that is for lack of cores."""
    number = layout.policy_actors
    found = _balance(speeds, layout, number)
    while _balance(speeds, layout, math.ceil(_ADDED * number)).rate >= _GAINED * found.rate:
        number += max(1, number // 20)
        found = _balance(speeds, layout, number)
    return None if found.env_rate <= found.policy_rate else number


def _rounded(number: float) -> float:
    """Return the number without its last bits, which would make a whole number one more."""
    return round(number, 9)
