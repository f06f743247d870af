"""`python -m wpray.launch --plan`: the forecast of a run, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from wpray.benchmarks.factory import benchmark_of, list_tasks
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.policies.drawing import drawing_place, policy_gpus
from wpray.policies.environments import Host, replicas, suited
from wpray.policies.factory import with_policy_args
from wpray.policies.fit import fitting_spec
from wpray.results import Run, load
from wpray.results.writer import RunFolder
from wpray.run.forecast import Forecast, RunLayout, Speeds, forecast
from wpray.run.output import check_what_is_there, choose_folder
from wpray.run.selection import select
from wpray.trials import remaining
from wpray.types import TrialKey

_RUNS = Path("runs")
# Figures without a measured run. The env actor: 290 steps of 5.5 ms, 17 observations of 5 ms, a reset of 50 ms. The
# policy: 3 plans that compute a segment, too, and 14 requested segments, at batch 8 on one H100 (159 and 51 ms a call).
_ENV_S = 290 * 0.0055 + 17 * 0.005 + 0.05
_ANSWER_S = 3 * (0.159 + 0.051) + 14 * 0.051
# A server's policy: 58 requests, each after 5 of the steps above. The time of one is a guess, which `doctor` replaces.
_REQUESTS, _REQUEST_S = 58, 0.1
_GUESSED = (
    f"built-in figures ({_REQUESTS} requests an episode, {_REQUEST_S:g} s each), as no finished run was found; doctor "
    "measures a request"
)
_DEFAULT = "built-in figures (LIBERO-Object; one core an environment, H100 at batch 8), as no finished run was found"


@dataclass(frozen=True, slots=True)
class Work:
    """Trials of the plan, and where their results would go."""

    folder: RunFolder
    planned: int
    finished: int


def show_plan(config: Config, console: Console | None = None) -> int:
    """Print the plan and return 0. Starts and writes nothing. Raises BadInputError as the run itself would."""
    console = console or Console(soft_wrap=True, highlight=False)
    config = with_policy_args(config)
    spec = fitting_spec(config)
    work = work_of(config)
    speeds = _measured(config, work.folder.path) or _defaults(policy_gpus(config, spec), spec.servers)
    layout, notes = _layout(config, spec, speeds)
    found = forecast(work.planned - work.finished, speeds, layout)
    console.print(_table(work, found, layout, spec.servers > 0))
    for line in (*_advice(found, layout, spec.servers > 0), *notes, f"From {speeds.source}."):
        console.print(line)
    return 0


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


def _measured(config: Config, folder: Path) -> Speeds | None:
    """Return the speeds of the newest run of the policy on this suite, else on another of the same simulator."""
    alike: Run | None = None
    for path in _newest_first([folder, *_RUNS.glob("*")]):
        run = _readable(path, config)
        if run is None:
            continue
        theirs = run.info["config"]["task_suite"]
        if theirs == config.task_suite or theirs in config.suites:
            return _speeds(run)
        if alike is None and not config.load_benchmark().stand_in and _takes_as_long(run):
            alike = run
    return None if alike is None else _speeds(alike)


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


def _speeds(run: Run) -> Speeds:
    episodes = run.episodes.filter(pc.not_equal(run.episodes["status"], "error"))
    count = episodes.num_rows
    asked = run.decisions.filter(pc.greater(run.decisions["wait_s"], 0))  # a plan's first segment is not requested
    waited, queued = _sum(asked["wait_s"]), _sum(asked["queue_s"])
    shares = pc.divide(asked["compute_s"], asked["batch_size"])
    return Speeds(
        env_s=(_sum(episodes["wall_s"]) - waited) / count,
        answer_s=max(0.0, waited - queued) / count,
        policy_s=_sum(shares) / count,
        source=f"{counted(count, 'episode')} in {run.path}",
    )


def _sum(column: Any) -> float:
    return float(pc.sum(column).as_py() or 0.0)


def _defaults(num_gpus: float, servers: int) -> Speeds:
    if servers:
        return Speeds(_ENV_S, _REQUESTS * _REQUEST_S, _REQUESTS * _REQUEST_S, _GUESSED)
    answer_s = _ANSWER_S if num_gpus else 0.0
    return Speeds(_ENV_S, answer_s, answer_s / 8, _DEFAULT)


def _layout(config: Config, spec: PolicySpec, speeds: Speeds) -> tuple[RunLayout, list[str]]:
    """Return the actors of the run on this machine; on a cluster with `auto`, those that balance one policy actor.

    Servers that answer a request at a time count in place of policy actors, because those only pass requests on.
    """
    asked, num_gpus, host = config.ray.num_policy_actors, policy_gpus(config, spec), Host.here(config, spec)
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
        whole = forecast(1, speeds, RunLayout(1, policies, config.ray.env_cpus, num_gpus))
        envs = whole.env_actors_to_balance or 1
        notes.append("The cluster's nodes are not asked: these are the env actors that its policy actors would need.")
    return RunLayout(envs, policies, config.ray.env_cpus, num_gpus, here), notes


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
    table.add_row("CPU hours", f"{found.cpu_hours:.2f} reserved by env actors")
    table.add_row("GPU hours", f"{found.gpu_hours:.2f} reserved by policy actors")
    table.add_row("bottleneck", found.bottleneck)
    return table


def _answering(serves: bool) -> str:
    return "server" if serves else "policy actor"


def _advice(found: Forecast, layout: RunLayout, serves: bool) -> list[str]:
    envs, policies = found.env_actors_to_balance, found.policy_actors_to_balance
    theirs = f"{counted(layout.env_actors, 'env actor')} can use {counted(policies, _answering(serves))}"
    if envs is not None:
        busy = f"{counted(envs, 'env actor')} keep {counted(layout.policy_actors, _answering(serves))} busy"
        return [f"Balance: {busy}; {theirs}."]
    there = "there are" if layout.cores is None else f"{counted(layout.cores, 'core')} can carry"
    return [f"Balance: the policy keeps pace with as many env actors as {there}; {theirs}."]


def counted(number: int, thing: str) -> str:
    """Return a text such as '1 core' or '2 cores'."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def duration(seconds: float) -> str:
    """Return a text such as '45 s', '12 min' or '3 h 20 min'."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
