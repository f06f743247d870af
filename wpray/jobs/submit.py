"""`wpray.launch --ray.submit`: runs the driver on the cluster. This machine only watches, and may disconnect."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from ray.job_submission import JobDetails

from wpray.config import Config
from wpray.errors import BadInputError, RunStoppedError
from wpray.jobs.client import JobsClient, connect, details, new_job_id, send
from wpray.jobs.fetch import fetch
from wpray.jobs.follow import exit_code, follow
from wpray.jobs.names import manifest_name, results_name
from wpray.jobs.package import submission
from wpray.system.paths import is_url


def submit(config: Config, plan: bool = False) -> int:
    """Submit the run or its plan and follow it, or follow the job that `ray.job` names; return its exit code.

    Raise BadInputError before anything starts, and RunStoppedError if contact with the job or its results is lost.
    """
    address = _address(config)
    client = connect(address)
    job_id = config.ray.job
    if job_id is None:
        job_id = new_job_id()
        send(client, submission(config, job_id, plan))
        print(f"submitted as {job_id} to {address}", flush=True)
    else:
        _check_exists(client, job_id)
    if not config.ray.follow:
        print(_how_to_go_on(address, job_id))
        return 0
    try:
        return _see_through(client, config, job_id, plan)
    except (KeyboardInterrupt, RunStoppedError):
        print(f"the job is not stopped by this; {_how_to_go_on(address, job_id)}", flush=True)
        raise


def _see_through(client: JobsClient, config: Config, job_id: str, plan: bool) -> int:
    found = follow(client, job_id)
    code, reason = exit_code(found)
    if reason:
        print(reason)
    if config.ray.fetch and not plan and code < 2 and found.driver_exit_code is not None:
        _fetch(client, config, found)
    return code


def _fetch(client: JobsClient, config: Config, job: JobDetails) -> None:
    if config.output_dir is not None and is_url(config.output_dir):
        print(f"the results are at {config.output_dir}: nothing to fetch")
        return
    node_id, job_id = str(job.driver_node_id), str(job.submission_id)

    def read(name: str) -> Generator[bytes, None, None]:
        return client.read_log(node_id, f"{results_name(job_id)}/{name}")

    got = fetch(lambda: client.read_log(node_id, manifest_name(job_id)), read, config.output_dir)
    already = f", {got.already} of them here before" if got.already else ""
    size = f"{len(got.manifest.files)} files, {got.manifest.size / 1e6:.1f} MB{already}"
    print(f"Fetched to {got.folder} ({size})")


def _check_exists(client: JobsClient, job_id: str) -> None:
    try:
        details(client, job_id)
    except OSError as error:
        raise BadInputError(f"ray.job {job_id}: the cluster does not say how it is ({error})") from error


def _address(config: Config) -> str:
    if config.ray.submit is None:
        raise BadInputError("ray.submit: name the dashboard of the cluster's head, such as http://HEAD:8265")
    return config.ray.submit


def _how_to_go_on(address: str, job_id: str) -> str:
    """Return a line that says how to follow or stop the job later."""
    where = shlex.quote(address)
    again = f"follow and fetch it: python -m wpray.launch --ray.submit {where} --ray.job {job_id}"
    return f"{again}; stop it: ray job stop --address {where} {job_id}"
