"""Env actors spread evenly over policy replicas, even though each sees old loads."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpray.transport import replica_selection
from wpray.transport.connection import Address
from wpray.transport.replica_selection import select_replica


class _Fleet:
    """Replicas and the env actors connected to each; an env actor selects by loads that may be old."""

    def __init__(self, nodes: list[str]) -> None:
        self.nodes = nodes
        self.actors: dict[int, int] = {}  # env actor -> replica

    @property
    def loads(self) -> list[int]:
        return [list(self.actors.values()).count(replica) for replica in range(len(self.nodes))]

    def see(self, replicas: int | None = None) -> list[Address]:
        known = list(enumerate(zip(self.nodes, self.loads, strict=True)))[:replicas]
        return [Address("host", 1, number, node, load, f"incarnation-{number}") for number, (node, load) in known]

    def select_replica(self, actor: int, seen: list[Address], here: str = "elsewhere") -> None:
        now = self.actors.get(actor)
        self.actors[actor] = select_replica(seen, here, actor, None if now is None else f"incarnation-{now}").replica


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_env_actors_that_connect_at_once_spread_evenly(replicas: int) -> None:
    fleet = _Fleet(["gpu"] * replicas)
    seen = fleet.see()  # nobody is connected yet, as all 40 see it
    for actor in range(40):
        fleet.select_replica(actor, seen)
    assert fleet.loads == [40 // replicas] * replicas


@settings(max_examples=60, deadline=None)
@given(actors=st.integers(1, 60), replicas=st.integers(1, 8), lag=st.integers(0, 60), seed=st.integers(0, 99))
def test_env_actors_soon_spread_evenly_in_any_order_and_on_old_loads(
    actors: int, replicas: int, lag: int, seed: int
) -> None:
    rng, fleet = random.Random(seed), _Fleet(["gpu"] * replicas)
    news = [fleet.see()]
    numbers = rng.sample(range(1000), actors)
    for actor in numbers:
        fleet.select_replica(actor, news[max(0, len(news) - 1 - lag)])
        news.append(fleet.see())
    for _ in range(2):  # between episodes, one after the other
        rng.shuffle(numbers)
        for actor in numbers:
            fleet.select_replica(actor, fleet.see())
    assert max(fleet.loads) - min(fleet.loads) <= 1
    even = fleet.loads
    for actor in numbers:
        fleet.select_replica(actor, fleet.see())
    assert fleet.loads == even, "an env actor moved although nothing was gained"


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_a_replica_that_comes_later_gets_its_share_in_one_round(replicas: int) -> None:
    fleet = _Fleet(["gpu"] * replicas)
    for actor in range(40):
        fleet.select_replica(actor, fleet.see(1))
    assert fleet.loads[0] == 40
    for actor in range(40):
        fleet.select_replica(actor, fleet.see())
    assert fleet.loads == [40 // replicas] * replicas


def test_the_own_nodes_replica_is_preferred_up_to_its_share() -> None:
    fleet = _Fleet(["a", "b"])
    homes = ["a"] * 8 + ["b"] * 8 + ["c"] * 16
    for _ in range(2):
        for actor, home in enumerate(homes):
            fleet.select_replica(actor, fleet.see(), home)
        assert fleet.loads == [16, 16]
    assert [fleet.actors[actor] for actor in range(16)] == [0] * 8 + [1] * 8


def test_a_crowded_node_sends_its_env_actors_to_another() -> None:
    fleet = _Fleet(["a", "b"])
    for even in (False, True, True):
        for actor in range(30):
            fleet.select_replica(actor, fleet.see(), "a")
        assert fleet.loads == ([15, 15] if even else [30, 0])


def test_an_env_actor_that_leaves_its_nodes_crowded_replica_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = _Fleet(["a", "b"])
    fleet.actors = dict.fromkeys(range(4), 0)
    monkeypatch.setattr(replica_selection, "_this_node", lambda: "a")
    monkeypatch.setattr(replica_selection.ReplicaSelector, "_addresses", lambda _: fleet.see())
    replicas = replica_selection.ReplicaSelector("env-3", ["handle", "handle"])
    assert replicas.select().replica == 0
    assert replicas.should_rebalance("incarnation-0")
    assert replicas.select().replica == 1
    assert replicas.select().replica == 0, "a later connection chooses anew"
    fleet.actors = dict(enumerate([0, 0, 1, 1]))
    assert not replicas.should_rebalance("incarnation-0")
