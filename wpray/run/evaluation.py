"""One evaluation from configuration to summary, cheap checks first."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from wpray.benchmarks.declarations import declarations
from wpray.cli import display
from wpray.cluster.node_versions import check_nodes
from wpray.cluster.setup import cluster_tasks, env_actors_in_memory, gpu_places, num_env_actors
from wpray.config import Config
from wpray.errors import BadInputError, RunFailedError, RunStoppedError
from wpray.orchestration.driver import Driver
from wpray.orchestration.scheduler import Scheduler, SuccessQuota
from wpray.orchestration.stop_rules import Stop, round_size
from wpray.policies.base import AnyPolicy, PolicySpec
from wpray.policies.drawing import DrawingPlace, drawing_place
from wpray.policies.environments import Host, Suited, suited
from wpray.policies.factory import all_policy_args, waypoint_units, with_policy_args
from wpray.policies.fit import fitting_spec
from wpray.report.page import write_report
from wpray.results import difficulty, statistics
from wpray.results.merge import merge
from wpray.results.summary import Tally
from wpray.results.writer import RunFolder
from wpray.run.callbacks import EpisodeCallback, EpisodeDone, Listeners
from wpray.run.live import live_report
from wpray.run.machine import check_machine
from wpray.run.output import RunInfo, choose_folder, opened
from wpray.run.pools import Pools
from wpray.run.selection import Selection, select
from wpray.run.tracked import TrackedRates, tracked
from wpray.system.gpus import num_gpus
from wpray.system.threads import WatchedThread
from wpray.types import Trial
from wpray.video.render import after_run as videos_after_run

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallerParts:
    """Parts of a run that a caller in Python brings: a policy object, a function for every episode."""

    policy: AnyPolicy | None = None  # replaces the configured one
    on_episode: Callable[[EpisodeDone], None] | None = None
    live: bool = False  # the report is served while the run is under way


@dataclass(frozen=True, slots=True)
class _Run:
    """Trials to run, and where their results go."""

    config: Config
    spec: PolicySpec
    folder: RunFolder
    todo: Sequence[Trial]
    tally: Tally
    info: RunInfo
    guest: CallerParts
    drawing: DrawingPlace
    rates: TrackedRates | None = None  # for a tracker

    @property
    def callback(self) -> EpisodeCallback | None:
        """Listener that calls the caller's function."""
        call = self.guest.on_episode
        return None if call is None else EpisodeCallback(self.tally, call)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Result of a run."""

    exit_code: int  # 0: all episodes ran, 1: not all
    folder: RunFolder


def evaluate(config: Config) -> int:
    """Run the evaluation that `config` describes; return the exit code (0 all episodes ran, 1 not all).

    Raises BadInputError before any actor starts, RunStoppedError when the run had to stop.
    """
    return evaluate_with(config, CallerParts()).exit_code


def evaluate_with(config: Config, guest: CallerParts, pools: Pools | None = None) -> RunResult:
    """Run the evaluation with the parts that a caller in Python brings; return its result.

    `pools` hands actors over from run to run; default: this run starts its own and ends them.
    """
    facts, odd = check_machine(config)
    # Tasks are listed before the policy is loaded where that is cheap, so that a misspelt suite is reported first.
    local_tasks = cluster_tasks(config) if config.ray.address is None else ()
    config = with_policy_args(config) if guest.policy is None else config
    spec = fitting_spec(config, guest.policy)
    console = display.RunConsole(soft_wrap=True)
    with contextlib.ExitStack() as stack:
        pools = stack.enter_context(Pools()) if pools is None else pools
        versions: dict[str, str] = {}
        if config.ray.address is not None:
            pools.join_ray(config, console)
            versions = check_nodes(config)
        chosen = select(config, local_tasks or cluster_tasks(config))
        folder = stack.enter_context(opened(choose_folder(config, True, versions or None), config, versions or None))
        stack.enter_context(display.logging_to(folder.path / "run.log", console))
        for line in odd:
            _LOG.warning("%s", line)
        stack.enter_context(live_report(folder.path) if guest.live else contextlib.nullcontext())
        drawing = drawing_place(config, spec, num_gpus() if config.ray.address is None else len(gpu_places()))
        facts |= _facts(config, spec, chosen, guest) | {"drawing": {"place": drawing.name, "because": drawing.because}}
        run = _begun(config, spec, folder, chosen, facts, versions, guest, drawing, stack)
        if run.todo and config.ray.address is None:
            pools.join_ray(config, console, _environments(config, spec))
        code = _finish(run, _carry_out(run, console, versions, pools) if run.todo else None, console)
    return RunResult(code, folder)


def _log_conditions(config: Config) -> None:
    if bddl := [suite for suite in config.suites if config.instruction_of(suite) == "bddl"]:
        of = f" in {', '.join(bddl)}" if len(config.suites) > 1 else ""
        _LOG.info("instructions%s are the BDDL files' (env.instruction: %s)", of, config.env.instruction)
    if steps := config.latency_steps:
        text = "each answer takes effect %d control steps after its observation (latency: %g ms, %s)"
        _LOG.info(text, steps, config.latency.extra_ms, config.latency.mode)


def _graded(config: Config, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the difficulty of the run's tasks for run.json; nothing if the benchmark grades none."""
    grades = config.load_benchmark().grades(list(dict.fromkeys(trial.task for trial in trials)))
    return difficulty.facts_of(grades.source, grades.levels) if grades is not None and grades.levels else {}


def _facts(config: Config, spec: PolicySpec, chosen: Selection, guest: CallerParts) -> dict[str, Any]:
    """Return what run.json says of the policy and of the trials."""
    units = waypoint_units(config)
    facts: dict[str, Any] = {
        "privileged": spec.privileged,
        "waypoint_space": None if units is None else asdict(units),
        **declarations(config.load_benchmark(), config.suites[0]),
        "planned_episodes": len(chosen.trials),
        "instruction_source": config.instruction_source,
        "policy_settings": all_policy_args(config) if guest.policy is None else {},
        "policy_spec": asdict(spec),
        **chosen.facts,
    }
    facts |= {"variations": config.variations} if config.variations else {}
    facts |= _graded(config, chosen.trials)
    return facts | ({"latency_steps": config.latency_steps} if config.latency_steps else {})


def _begun(
    config: Config,
    spec: PolicySpec,
    folder: RunFolder,
    chosen: Selection,
    facts: dict[str, Any],
    versions: dict[str, str],
    guest: CallerParts,
    drawing: DrawingPlace,
    stack: contextlib.ExitStack,
) -> _Run:
    """Return the run with the trials that are left, after run.json says that it is under way.

    What tracks the run ends with `stack`.
    """
    _log_conditions(config)
    chosen.check_same_states(folder.read_info(), folder.location)
    finished = folder.finished()
    tally = chosen.tally(config, finished)
    todo, planned = chosen.left(tally, finished), len(chosen.trials)
    info = RunInfo.read_or_new(config, folder, uuid.uuid4().hex[:12], facts, versions or None, bool(todo))
    if info.resumed:
        _LOG.info("resuming %s: %d of %d episodes are finished", folder.location, planned - len(todo), planned)
    if info.changes:
        _LOG.warning("resuming on other software, which may change last bits: %s", ", ".join(info.changes))
    rates = stack.enter_context(tracked(config, folder, info, tally))
    if not (todo and info.knows_files):  # otherwise once the policy's files are compared with those of the results
        info.save("running")
    return _Run(config, spec, folder, todo, tally, info, guest, drawing, rates)


def _carry_out(run: _Run, console: Console, versions: dict[str, str], pools: Pools) -> Stop | None:
    """Run the remaining trials on env actors with the given versions; return why it stopped early, if it did."""
    config, live = run.config, run.guest.policy
    num_workers = _num_workers(config, pools, len(run.todo))
    with pools.policies(config, run.spec, live) as policies:
        WatchedThread("statistics", statistics.prepare)  # no interval is needed before an episode is over
        context = replace(policies.context, run_id=run.info.run_id, versions=versions, session=run.info.session)
        _LOG.info("%d episodes, %d env actors, %d policy actors", len(run.todo), num_workers, policies.size)
        env_actors = pools.env_actors(context, policies, remote=run.drawing.remote)
        if run.drawing.remote:
            _LOG.info("pictures are drawn %s", run.drawing)
        with display.RunDisplay(console, run.tally, policies.size) as shown:
            listener = Listeners(shown, run.callback, run.rates)
            parts = (env_actors, policies.pool, policies.events, run.folder, run.tally, listener, run.info)
            with pools.sizing(config, num_workers, env_actors, policies.size, run.info) as sizer:
                driver = Driver(context, *parts, pools.render_actors, sizer)
                with _ctrl_c(driver):
                    driver.run(_scheduler(run), num_workers)
            if driver.stop is not None and driver.stop.at_once:
                _LOG.warning("stopping now, keeping what is finished")
        run.info.add_hosts(driver.hosts)
        return driver.stop


def _num_workers(config: Config, pools: Pools, num_trials: int) -> int:
    """Return the number of environments at once; raise BadInputError if none fits."""
    fitting, chosen = num_env_actors(config, num_trials), pools.chosen(config)
    if chosen is None:
        return fitting
    # It may be more than there are CPUs for, by what an earlier run of this process has learnt.
    return max(1, min(chosen.number, env_actors_in_memory(config), num_trials))


def _environments(config: Config, spec: PolicySpec) -> Suited:
    """Return the number of environments that suits the policy on this machine.

    Log why it is not one a core, or that a larger number is configured.
    """
    found, given = suited(config, spec, Host.here(config, spec)), config.num_env_actors
    if given == "auto":
        if found.number != found.cores:
            _LOG.info("ray.num_env_actors auto: at most %s", found)
    elif given > found.number and not config.load_benchmark().stand_in:
        _LOG.warning("ray.num_env_actors is %d; auto would be %s", given, found)
    return found


def _finish(run: _Run, stop: Stop | None, console: Console) -> int:
    """Merge the parts, report the outcome, and turn it into an exit code.

    A stop that was requested while the last episodes ended has stopped only what follows them.
    """
    merge(run.folder)
    tally = run.tally
    asked, all_ran = stop, tally.done - tally.errors == tally.total
    stop = None if all_ran else asked
    complete = all_ran or (stop is not None and stop.intended)
    run.info.save("finished" if complete else "stopped", stop.reason if stop else None)
    display.log_summary(tally)
    _show(run, asked, console)
    if stop is not None and stop.intended:
        _LOG.info("Stopped before the last episode, as stop_when asks: %s", stop.reason)
    elif stop is not None and not complete:
        kind = RunFailedError if stop.of_this_run else RunStoppedError
        raise kind(f"{stop.reason} (the same command goes on where this stopped)")
    return 0 if complete else 1


def _show(run: _Run, asked: Stop | None, console: Console) -> None:
    """Render videos unless a stop was requested, write the report and print the summary.

    Ctrl-C skips what is not finished; the episodes' results stay.
    """
    config, path, report = run.config, run.folder.path, None
    try:
        if asked is None or asked.intended:
            videos_after_run(config, run.folder, console)
        elif run.tally.done == run.tally.total and config.video.mode != "none" and config.record == "full":
            _LOG.warning("%s: videos left out; python -m wpray.video %s renders them later", asked.reason, path)
        report = _report(run.folder)
    except KeyboardInterrupt:
        _LOG.warning("interrupted: report left out; python -m wpray.report %s writes it later", path)
    display.print_summary(console, run.tally, run.folder, report)


def _report(folder: RunFolder) -> Path | None:
    """Write the report; return None, with a warning, if that fails (no episode has finished, the disk is full)."""
    try:
        return write_report(folder.path)
    except BadInputError as error:
        _LOG.warning("no report: %s", error)
        return None


@contextlib.contextmanager
def _ctrl_c(driver: Driver) -> Iterator[None]:
    """On the first Ctrl-C, finish the current trials; on the second, stop now and keep what is finished."""

    def interrupt(*_: Any) -> None:
        driver.request_stop(Stop("interrupted", at_once=driver.stop is not None))

    caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _scheduler(run: _Run) -> Scheduler:
    config, wanted = run.config, run.config.stop_after_successes
    solved = {key: task.successes for key, task in run.tally.tasks.items()}
    quota = None if wanted is None else SuccessQuota(wanted, solved)
    return Scheduler(run.todo, config.retry.max_attempts, round_size(config.stop_when), quota)
