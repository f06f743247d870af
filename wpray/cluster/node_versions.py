"""Versions of a run's machines, which must agree on what decides outcomes.

Nodes are compared with the machine that starts the run when it joins a cluster, and again by every env actor, because
nodes join later. Another simulator moves physics and pixels, so it is refused. Another Python, Ray, numpy or torch may
change the last bit of a sum, as another processor may, so it is a warning.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wpray.cluster.gather import gather_within
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.provenance import origins, record

_LOG = logging.getLogger(__name__)
HARMLESS = ("python", "ray", "numpy", "torch")
REMEDY = "make them alike: bash cluster/bootstrap.sh node"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeVersions:
    """Answers of the nodes."""

    versions: dict[str, dict[str, str]]  # by host
    silent: tuple[str, ...]  # hosts that did not answer in time, or could not


def ask_nodes(timeout_s: float = _TIMEOUT_S, config: Config | None = None) -> NodeVersions:
    """Return the versions on every node that is there now, with digests of what decides outcomes of `config`."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    asked = [_versions.options(scheduling_strategy=_on(node)).remote(*_asked(config)) for node in nodes]
    said = dict(gather_within(asked, timeout_s))
    silent = [node["NodeManagerHostname"] for index, node in enumerate(nodes) if index not in said]
    found: dict[str, dict[str, str]] = {}
    for host, versions in said.values():
        # A host may have several nodes; one that differs must not be hidden by one that agrees.
        name = host if found.get(host, versions) == versions else f"{host} (another node)"
        found[name] = versions
    return NodeVersions(found, tuple(silent))


def reference(nodes: NodeVersions, config: Config | None = None) -> dict[str, str]:
    """Return the versions that nodes are compared with: this machine's, and what it lacks from the first node."""
    found: dict[str, str] = {}
    for versions in reversed(list(nodes.versions.values())):
        found |= versions
    return found | origins.identity(*_asked(config))


def check_nodes(config: Config | None = None) -> dict[str, str]:
    """Return the versions that every env actor must have; log differences that change no outcome.

    Raises BadInputError, naming hosts, packages and versions, if a node has another wpray, policy or simulator, or
    other files of one.
    """
    nodes = ask_nodes(config=config)
    wanted = reference(nodes, config)
    for host in nodes.silent:
        _LOG.warning("node %s has not reported its versions within %g s", host, _TIMEOUT_S)
    odd = [text for host, theirs in nodes.versions.items() if (text := named(host, wanted, theirs, HARMLESS))]
    if odd:
        _LOG.warning("nodes differ, which may change last bits: %s", "; ".join(odd))
    wrong = [named(host, wanted, theirs, must_match(wanted, theirs)) for host, theirs in nodes.versions.items()]
    if any(wrong):
        raise BadInputError(f"nodes differ in what decides outcomes: {'; '.join(filter(None, wrong))}; {REMEDY}")
    return wanted


def check_this_host(wanted: Mapping[str, str], config: Config | None = None) -> None:
    """Raise BadInputError if this process differs from `wanted` (empty: no check) in what decides outcomes."""
    if not wanted:
        return
    ours = origins.identity(*_asked(config))
    wrong = named(platform.node(), wanted, ours, must_match(wanted, ours))
    if wrong:
        raise BadInputError(f"this node differs in what decides outcomes: {wrong}; {REMEDY}")


def must_match(*found: Mapping[str, str]) -> list[str]:
    """Return the names of what must be equal on every node."""
    return ["wpray", record.POLICY, *record.decisive_names(*found)]


def named(host: str, wanted: Mapping[str, str], theirs: Mapping[str, str], names: Iterable[str]) -> str:
    """Return 'host: mujoco 3.4.0 instead of 3.3.2'; empty if nothing that both have differs."""
    different = record.differing(wanted, theirs, names)
    return f"{host}: " + ", ".join(f"{n} {theirs[n]} instead of {wanted[n]}" for n in different) if different else ""


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)


def _asked(config: Config | None) -> tuple[tuple[str, ...], str, str]:
    """Return the suites, the benchmark and the policy whose files count; none without a configuration."""
    return ((), "auto", "") if config is None else (config.suites, config.benchmark, config.policy)


@ray.remote(num_cpus=0)
def _versions(suites: tuple[str, ...], benchmark: str, policy: str) -> tuple[str, dict[str, str]]:
    return platform.node(), origins.identity(suites, benchmark, policy)
