"""Checks of Ray: it answers, and its nodes have the same versions."""

from __future__ import annotations

import ray

from wpray.checks import CheckResult
from wpray.cluster.node_versions import HARMLESS, REMEDY, NodeVersions, ask_nodes, must_match, named, reference
from wpray.cluster.setup import env_actors_that_fit, running_ray
from wpray.config import Config
from wpray.doctor.policies import environments_here

_TIMEOUT_S = 180


def check_ray(config: Config) -> list[CheckResult]:
    """Start or join Ray as a run does, and compare the versions of all nodes."""
    suits = environments_here(config)
    with running_ray(config, None if suits is None else suits.number):
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        where = f"joined {config.ray.address}" if config.ray.address else "starts here"
        size = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        text = f"{ray.__version__} {where}; {size}, room for {env_actors_that_fit(config)} environments"
        return [
            CheckResult("Ray", "pass", text),
            *_compare(ask_nodes(_TIMEOUT_S, config), len(nodes), config),
        ]


def _compare(nodes: NodeVersions, count: int, config: Config | None = None) -> list[CheckResult]:
    if nodes.silent:
        text = f"{', '.join(nodes.silent)}: no answer within {_TIMEOUT_S} s"
        return [CheckResult("nodes", "fail", text, "see ray status")]
    wanted, problems = reference(nodes, config), []
    for host, theirs in nodes.versions.items():
        wrong, odd = (named(host, wanted, theirs, names) for names in (must_match(wanted, theirs), HARMLESS))
        problems += [CheckResult("nodes", "fail", wrong, REMEDY)] if wrong else []
        problems += [CheckResult("nodes", "warn", odd, REMEDY)] if odd else []
    return problems or [CheckResult("nodes", "pass", f"{count} of {count} have this machine's versions")]
