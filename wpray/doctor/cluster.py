"""Checks of Ray: it answers, and its nodes have the same versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wpray.checks import CheckResult
from wpray.cluster.gather import gather_within
from wpray.cluster.node_versions import HARMLESS, REMEDY, NodeVersions, ask_nodes, must_match, named, reference
from wpray.cluster.setup import alive_nodes, env_actors_that_fit, gpu_places, running_ray
from wpray.config import Config
from wpray.doctor.policies import drawing_here, environments_here
from wpray.doctor.simulator import render_here

_TIMEOUT_S = 180


def check_ray(config: Config) -> list[CheckResult]:
    """Start or join Ray as a run does, and compare the versions of all nodes."""
    suits = environments_here(config)
    with running_ray(config, None if suits is None else suits.number):
        nodes = alive_nodes()
        where = f"joined {config.ray.address}" if config.ray.address else "starts here"
        size = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        text = f"{ray.__version__} {where}; {size}, room for {env_actors_that_fit(config)} environments"
        return [
            CheckResult("Ray", "pass", text),
            *_compare(ask_nodes(_TIMEOUT_S, config), len(nodes), config),
            *(_rendering(config) if config.ray.address else ()),
        ]


def _rendering(config: Config) -> Iterator[CheckResult]:
    """Render a frame on every node that a run draws on: those with a GPU if render actors draw, else all."""
    if not config.load_benchmark().uses_opengl:
        return
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in alive_nodes()}
    gpus = gpu_places()
    place = drawing_here(config, len(gpus))
    calls = {
        node: _render_there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(config)
        for node in (dict.fromkeys(gpus) if place.remote and gpus else names)
    }
    found = dict(gather_within(list(calls.values()), _TIMEOUT_S))
    for index, node in enumerate(calls):
        silent = [CheckResult("rendering", "fail", f"no frame within {_TIMEOUT_S} s", "see ray status")]
        for result in found.get(index, silent):
            yield replace(result, message=f"{names[node]}: {result.message}")
    yield CheckResult("rendering", "pass", f"pictures are drawn {place}")


@ray.remote(num_cpus=0)
def _render_there(config: Config) -> list[CheckResult]:
    return render_here(config)


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
