"""Forecast of a run from measured episodes; pure arithmetic, without any actor or file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Resource = Literal["env actors", "policy"]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Mean seconds of an episode."""

    env_s: float  # on its env actor's core: reset, steps, renders, recording, writing
    answer_s: float  # waiting for policies that have no other work
    policy_s: float  # of a policy actor's time: its requests' shares of their batches
    source: str  # run or figures that these are taken from


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Number of actors of a run, and what each reserves."""

    env_actors: int
    policy_actors: int
    env_cpus: float  # reserved by each env actor
    policy_gpus: float  # reserved by each policy actor
    cores: int | None = None  # shared by the env actors; None: a core each


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


def forecast(episodes: int, speeds: Speeds, layout: RunLayout) -> Forecast:
    """Return what `episodes` more episodes take.

    The slower of the two resources sets the pace, and the last episode ends alone. Raises ValueError for a layout
    without actors.
    """
    if min(layout.env_actors, layout.policy_actors) < 1:
        raise ValueError("a run needs an env actor and a policy actor at least")
    env_actors = min(layout.env_actors, max(1, episodes))
    env_rate = env_pace(speeds, env_actors, layout.cores)
    policy_rate = layout.policy_actors / speeds.policy_s if speeds.policy_s > 0 else math.inf
    rate = min(env_rate, policy_rate)
    seconds = max(episodes / rate, _alone_s(speeds)) if episodes else 0.0
    hours = seconds / 3600
    return Forecast(
        episodes=episodes,
        seconds=seconds,
        cpu_hours=hours * env_actors * layout.env_cpus,
        gpu_hours=hours * layout.policy_actors * layout.policy_gpus,
        bottleneck="env actors" if env_rate <= policy_rate else "policy",
        per_min=60 * rate,
        env_actors_to_balance=_env_actors_for(policy_rate, speeds, layout.cores),
        policy_actors_to_balance=max(1, math.ceil(_rounded(env_rate * speeds.policy_s))),
    )


def env_pace(speeds: Speeds, env_actors: int, cores: int | None) -> float:
    """Return the episodes a second of env actors whose every request is answered at once."""
    pace = env_actors / _alone_s(speeds)
    return pace if cores is None else min(pace, cores / speeds.env_s)


def _alone_s(speeds: Speeds) -> float:
    return speeds.env_s + speeds.answer_s


def _env_actors_for(rate: float, speeds: Speeds, cores: int | None) -> int | None:
    if math.isinf(rate) or (cores is not None and cores / speeds.env_s < rate):
        return None
    return max(1, math.ceil(_rounded(rate * _alone_s(speeds))))


def _rounded(number: float) -> float:
    """Return the number without its last bits, which would make a whole number one more."""
    return round(number, 9)
