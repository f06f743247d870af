"""One evaluation from configuration to summary, in the order in which things may go wrong: cheap checks first."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from rich.console import Console

from wpray import display
from wpray.actors import RunContext
from wpray.cluster_setup import cluster_tasks, num_env_actors, num_policy_actors, start_ray
from wpray.config import Config
from wpray.driver import Driver, Stop
from wpray.errors import BadInputError, RunStoppedError
from wpray.machine import check_machine
from wpray.output import check_resume, choose_folder, describe_run
from wpray.policy.base import PolicySpec
from wpray.policy.factory import policy_spec
from wpray.pool import Pool
from wpray.results.encode import Key
from wpray.results.merge import merge
from wpray.results.summary import Tally
from wpray.results.writer import Outcome, RunFolder
from wpray.scheduler import Scheduler
from wpray.trials import make_trials, remaining, select_tasks
from wpray.types import Task, Trial

_LOG = logging.getLogger(__name__)


def evaluate(config: Config) -> int:
    """Runs the evaluation that `config` describes; returns the exit code (0 all episodes ran, 1 not all).

    Raises BadInputError before any actor starts, RunStoppedError when the run had to stop.
    """
    spec = policy_spec(config)
    facts = check_machine(config)
    folder = choose_folder(config)
    folder.open()
    console = Console(stderr=False)
    try:
        known = check_resume(config, folder)
        display.open_log(folder.path / "run.log", console)
        return _evaluate_in(folder, config, spec, facts, known, console)
    finally:
        display.close_log()
        folder.close()


def _evaluate_in(
    folder: RunFolder,
    config: Config,
    spec: PolicySpec,
    facts: dict[str, Any],
    known: dict[str, Any] | None,
    console: Console,
) -> int:
    with _ray(config, console):
        tasks = select_tasks(cluster_tasks(config.task_suite, config.env.max_steps), config.tasks)
        trials = make_trials(tasks, config.num_trials_per_task, config.seed)
        finished = folder.finished()
        tally = _tally(tasks, config.num_trials_per_task, finished)
        todo = remaining(trials, finished)
        run_id = known["run_id"] if known else uuid.uuid4().hex[:12]
        info = describe_run(config, run_id, {**facts, "privileged": spec.privileged})
        folder.write_info(info)
        if known:
            _LOG.info("resuming %s: %d of %d trials are finished", folder.path, len(trials) - len(todo), len(trials))
        stop = _run(RunContext(run_id, config, secrets.token_bytes(32)), spec, folder, todo, tally, console)
    merge(folder)
    complete = tally.done - tally.errors == tally.total
    folder.write_info({**info, "state": "finished" if complete else "stopped", "stop_reason": stop and stop.reason})
    display.print_summary(console, tally, folder.path)
    if stop is not None and not complete:
        raise RunStoppedError(f"{stop.reason} (the same command goes on where this stopped)")
    return 0 if complete else 1


def _run(
    context: RunContext, spec: PolicySpec, folder: RunFolder, todo: Sequence[Trial], tally: Tally, console: Console
) -> Stop | None:
    """Runs what is left to do; returns why it stopped early, if it did."""
    if not todo:
        return None
    config = context.config
    num_workers = num_env_actors(config, len(todo))
    replicas = num_policy_actors(config, spec.num_gpus)
    pool = Pool(context, spec)
    try:
        _start_policies(pool, replicas, config.policy)
        _LOG.info("Running %d episodes on %d environments and %d policies", len(todo), num_workers, replicas)
        with display.RunDisplay(console, tally, num_workers) as shown:
            driver = Driver(context, pool, folder, shown.episode, lambda: shown.busy(*pool.busy_s))
            with _ctrl_c(driver):
                driver.run(Scheduler(todo, config.retry.max_attempts), num_workers)
        return driver.stop
    finally:
        pool.close()


def _start_policies(pool: Pool, count: int, name: str) -> None:
    began = time.monotonic()
    try:
        load_s = pool.start_policies(count)
    except ray.exceptions.RayTaskError as error:
        raise _unwrap(error) from error
    except ray.exceptions.ActorDiedError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BadInputError(f"policy {name} cannot start: {lines[-1]}") from error
    _LOG.info("Policy %s loaded in %.1f s (%.1f s with its process)", name, load_s, time.monotonic() - began)


def _unwrap(error: ray.exceptions.RayTaskError) -> BaseException:
    cause = error.cause
    return cause if isinstance(cause, BadInputError) else BadInputError(f"the policy cannot start: {cause}")


@contextlib.contextmanager
def _ray(config: Config, console: Console) -> Iterator[None]:
    with console.status("starting Ray") if console.is_terminal else contextlib.nullcontext():
        start_ray(config)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ctrl_c(driver: Driver) -> Iterator[None]:
    """Ctrl-C once: finish the trials in hand; twice: stop now, keeping what is finished."""

    def interrupt(*_: object) -> None:
        again = driver.stop is not None
        _LOG.warning("stopping now" if again else "finishing the trials in hand; Ctrl-C again stops now")
        driver.request_stop(Stop("interrupted", at_once=again))

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _tally(tasks: Sequence[Task], num_trials: int, finished: dict[Key, Outcome]) -> Tally:
    tally = Tally.planned((task, num_trials) for task in tasks)
    for (suite, task_id, trial), outcome in finished.items():
        if (suite, task_id) in tally.tasks and trial < num_trials:
            tally.add(suite, task_id, outcome.status, outcome.num_steps)
    return tally
