"""What a run will take, from what episodes have taken: pure arithmetic, nothing is started or read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Resource = Literal["env actors", "policy"]


@dataclass(frozen=True, slots=True)
class Speeds:
    """What an episode takes, seconds (means)."""

    env_s: float  # of its env actor's core: reset, steps, renders, recording, writing
    answer_s: float  # until its requests are answered by policies with nothing else to do
    policy_s: float  # of a policy actor: its requests' shares of their batches
    source: str  # where these are from


@dataclass(frozen=True, slots=True)
class Layout:
    """How wide a run is."""

    env_actors: int
    policy_actors: int
    env_cpus: float  # that each env actor reserves
    policy_gpus: float  # that each policy actor reserves
    cores: int | None = None  # that the env actors share; None: a core each


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run before it starts."""

    episodes: int
    seconds: float
    cpu_hours: float  # reserved by the env actors
    gpu_hours: float  # reserved by the policy actors
    bottleneck: Resource
    per_min: float  # episodes a minute, in the middle of the run
    env_actors_to_balance: int | None  # that keep these policy actors busy; None: no number does
    policy_actors_to_balance: int  # that these env actors keep busy


def forecast(episodes: int, speeds: Speeds, layout: Layout) -> Forecast:
    """What `episodes` more episodes take.

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
    """Episodes a second that env actors bring while every request is answered at once."""
    pace = env_actors / _alone_s(speeds)
    return pace if cores is None else min(pace, cores / speeds.env_s)


def _alone_s(speeds: Speeds) -> float:
    return speeds.env_s + speeds.answer_s


def _env_actors_for(rate: float, speeds: Speeds, cores: int | None) -> int | None:
    if math.isinf(rate) or (cores is not None and cores / speeds.env_s < rate):
        return None
    return max(1, math.ceil(_rounded(rate * _alone_s(speeds))))


def _rounded(number: float) -> float:
    """Without the last bits, which would make a whole number one more."""
    return round(number, 9)
