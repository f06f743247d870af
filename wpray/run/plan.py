"""`python -m wpray.launch --plan`: the forecast of a run, before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from wpray.benchmarks.factory import list_tasks
from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.drawing import drawing_place, policy_gpus
from wpray.policies.environments import Host, replicas, suited
from wpray.policies.factory import with_policy_args
from wpray.policies.fit import fitting_spec
from wpray.results import load
from wpray.results.writer import RunFolder
from wpray.run.forecast import Forecast, RunLayout, Speeds, forecast
from wpray.run.output import check_what_is_there, choose_folder
from wpray.run.selection import select
from wpray.run.speeds import speeds_for
from wpray.trials import remaining
from wpray.types import TrialKey

_MANY = 100_000  # episodes, so that every env actor has work


@dataclass(frozen=True, slots=True)
class Work:
    """Trials of the plan, and where their results would go."""

    folder: RunFolder
    planned: int
    finished: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Forecast of a run on this machine, and what it rests on."""

    work: Work
    speeds: Speeds
    layout: RunLayout
    found: Forecast
    notes: list[str]  # of what was assumed
    serves: bool  # True if servers answer


def show_plan(config: Config, console: Console | None = None) -> int:
    """Print the plan and return 0. Starts and writes nothing. Raises BadInputError as the run itself would."""
    console = console or Console(soft_wrap=True, highlight=False)
    plan = plan_of(config)
    console.print(_table(plan.work, plan.found, plan.layout, plan.serves))
    for line in (*_advice(plan), *plan.notes, f"From {plan.speeds.source}."):
        console.print(line)
    return 0


def plan_of(config: Config) -> Plan:
    """Return the plan of a run. Starts and writes nothing. Raises BadInputError as the run itself would."""
    config = with_policy_args(config)
    spec = fitting_spec(config)
    work, host = work_of(config), Host.here(config, spec)
    speeds = speeds_for(config, spec, host, work.folder.path)
    layout, notes = _layout(config, spec, host, speeds)
    found = forecast(work.planned - work.finished, speeds, layout)
    return Plan(work, speeds, layout, found, notes, spec.servers > 0)


def work_of(config: Config) -> Work:
    """Return the trials of `config` and how many are finished. Raises BadInputError as the run itself would."""
    listed = [
        list_tasks(suite, config.max_steps_of(suite), config.instruction_of(suite), config.benchmark)
        for suite in config.suites
    ]
    chosen = select(config, [task for tasks in listed for task in tasks])
    trials, folder = chosen.trials, choose_folder(config)
    check_what_is_there(folder, config)
    chosen.check_same_states(folder.read_info(), folder.location)
    return Work(folder, len(trials), len(trials) - len(remaining(trials, _recorded(folder))))


def _recorded(folder: RunFolder) -> set[TrialKey]:
    """Return the trials that have an outcome. It only reads, because a driver may be at work in the folder."""
    if folder.read_info() is None or not folder.has_rows():
        return set()
    rows = load(folder.location).episodes.select(["suite", "task_id", "trial", "status"]).to_pylist()
    return {TrialKey.from_row(row) for row in rows if row["status"] != "error"}


def _layout(config: Config, spec: PolicySpec, host: Host, speeds: Speeds) -> tuple[RunLayout, list[str]]:
    """Return the actors of the run on this machine; on a cluster with `auto`, those that balance one policy actor.

    Servers that answer a request at a time count in place of policy actors, because those only pass requests on.
    """
    asked, num_gpus = config.ray.num_policy_actors, policy_gpus(config, spec)
    policies = spec.servers or replicas(config, spec, 1 if config.ray.address else host.gpus)
    notes, here = [], None
    if spec.servers:
        notes.append(
            "Servers are taken to answer one request at a time (policy_args.connections); more of them share the load."
        )
    if config.ray.address and asked == "auto" and num_gpus:
        notes.append("ray.num_policy_actors is auto, one a GPU: this is for one, and each further GPU brings as much.")
    if spec.images:
        gpus = math.ceil(num_gpus) if config.ray.address else host.gpus
        notes.append(f"Pictures are drawn {drawing_place(config, spec, gpus)}.")
    wanted = config.num_env_actors
    if config.ray.address is None:
        here = host.cores
        envs, why = _here(config, spec, host)
        notes += why
        if num_gpus and not host.gpus:
            notes.append("No GPU was found here: the policy would compute on the CPU, slower than these figures.")
    elif wanted != "auto":
        envs = wanted
    else:
        whole = forecast(
            1, speeds, RunLayout(1, policies, config.ray.env_cpus, num_gpus, max_batch=spec.max_batch_size)
        )
        envs = whole.env_actors_to_balance or 1
        notes.append("The cluster's nodes are not asked: these are the env actors that its policy actors would need.")
    return RunLayout(envs, policies, config.ray.env_cpus, num_gpus, here, spec.max_batch_size), notes


def _here(config: Config, spec: PolicySpec, host: Host) -> tuple[int, list[str]]:
    """Return the number of environments on this machine, and a note of what `auto` goes by."""
    wanted = config.num_env_actors
    if wanted == "auto":
        found = suited(config, spec, host)
        return max(1, found.number), [f"ray.num_env_actors auto: {found}."]
    return max(1, wanted if host.memory is None else min(wanted, int(host.memory / config.env_memory))), []


def _table(work: Work, found: Forecast, layout: RunLayout, serves: bool) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    already = f" ({work.finished} of {work.planned} are finished in {work.folder.location})" if work.finished else ""
    table.add_row("episodes", f"{found.episodes}{already}")
    actors = (counted(layout.env_actors, "env actor"), counted(layout.policy_actors, _answering(serves)))
    table.add_row("actors", ", ".join(actors))
    table.add_row("time", f"about {duration(found.seconds)} ({found.per_min:.0f} episodes/min), starting up apart")
    loading = f", {duration(found.load_s)} of it until the policy answers" if found.load_s else ""
    table.add_row("whole run", f"about {duration(found.span_s)}{loading}")
    table.add_row("CPU hours", f"{found.cpu_hours:.2f} reserved by env actors")
    table.add_row("GPU hours", f"{found.gpu_hours:.2f} reserved by policy actors")
    table.add_row("bottleneck", found.bottleneck)
    return table


def _answering(serves: bool) -> str:
    return "server" if serves else "policy actor"


def _advice(plan: Plan) -> list[str]:
    found, layout = plan.found, plan.layout
    envs, policies = found.env_actors_to_balance, found.policy_actors_to_balance
    if plan.speeds.requests:
        return [_alternatives(plan)]
    theirs = f"{counted(layout.env_actors, 'env actor')} can use {counted(policies, _answering(plan.serves))}"
    if envs is not None:
        busy = f"{counted(envs, 'env actor')} keep {counted(layout.policy_actors, _answering(plan.serves))} busy"
        return [f"Balance: {busy}; {theirs}."]
    there = "there are" if layout.cores is None else f"{counted(layout.cores, 'core')} can carry"
    return [f"Balance: the policy keeps pace with as many env actors as {there}; {theirs}."]


def _alternatives(plan: Plan) -> str:
    """Return the paces of other numbers of actors, because batches grow with the env actors and never stop helping."""
    layout = plan.layout

    def pace(**other: int) -> str:
        return f"{forecast(_MANY, plan.speeds, replace(layout, **other)).per_min:.0f}"

    fewer, more, policies = max(1, layout.env_actors // 2), round(1.5 * layout.env_actors), layout.policy_actors + 1
    return (
        f"Balance: {counted(fewer, 'env actor')} would bring {pace(env_actors=fewer)} episodes/min, {more} "
        f"{pace(env_actors=more)}; {counted(policies, 'policy actor')} {pace(policy_actors=policies)}."
    )


def counted(number: int, thing: str) -> str:
    """Return a text such as '1 core' or '2 cores'."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def duration(seconds: float) -> str:
    """Return a text such as '45 s', '12 min' or '3 h 20 min'."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
