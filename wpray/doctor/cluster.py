"""Ray: reachable, the same versions on every node, and what the nodes hold."""

from __future__ import annotations

import platform
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wpray import provenance
from wpray.cluster_setup import env_actors_that_fit, start_ray
from wpray.config import Config
from wpray.doctor.result import Result

_TIMEOUT_S = 180


def check_ray(config: Config) -> list[Result]:
    """Starts or joins Ray as a run does, and asks every node for its versions."""
    start_ray(config)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        where = f"joined {config.ray.address}" if config.ray.address else "starts here"
        size = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        text = f"{ray.__version__} {where}; {size}, room for {env_actors_that_fit(config)} environments"
        return [Result("Ray", "pass", text), *_compare(nodes)]
    finally:
        ray.shutdown()


def _compare(nodes: list[dict[str, Any]]) -> list[Result]:
    ours = provenance.package_versions()
    asked = [_versions.options(scheduling_strategy=_on(node)).remote() for node in nodes]
    done, late = ray.wait(asked, num_returns=len(asked), timeout=_TIMEOUT_S)
    if late:
        names = ", ".join(node["NodeManagerHostname"] for node, call in zip(nodes, asked, strict=True) if call in late)
        return [Result("nodes", "fail", f"{names}: no answer within {_TIMEOUT_S} s", "see ray status")]
    problems = []
    for host, theirs in ray.get(done):
        different = provenance.differences(ours, theirs)
        if different:
            text = ", ".join(f"{name} {there} instead of {here}" for name, (here, there) in different.items())
            problems.append(Result("nodes", "fail", f"{host}: {text}", "on it: bash cluster/bootstrap.sh node"))
    return problems or [Result("nodes", "pass", f"{len(nodes)} of {len(nodes)} have this machine's versions")]


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)


@ray.remote(num_cpus=0)
def _versions() -> tuple[str, dict[str, str]]:
    return platform.node(), provenance.package_versions()
