"""The Jobs server of a cluster's head, spoken to through the dashboard's port alone."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import requests
from ray.job_submission import JobDetails, JobSubmissionClient

from wpray.errors import BadInputError
from wpray.jobs.package import Submission, pack
from wpray.quiet_ray import passed_on

_INSTALL = "run: bash cluster/bootstrap.sh setup cluster (or pip install 'wpray[cluster]')"
_LOOK = "start Ray there with ray[default], and see that the port is forwarded (ray dashboard CLUSTER.yaml)"
_KNOCK_S = 10.0
_READ_S = 120.0  # longest silence in the middle of a file
_WHOLE_S = 24 * 3600  # Ray's own limit of 30 s for a file is no limit for a slow line
_TRIES = 6
_NO_AGENT = "No available agent"  # Ray's words, after waiting 10 s for one
_CHUNK = 2**20
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
# RAY_ADDRESS would win over the address that the configuration names.
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class JobsClient(JobSubmissionClient):
    """Ray's client, with what it lacks: files of a node's log folder, in bounded memory."""

    def read_log(self, node_id: str, name: str) -> Generator[bytes, None, None]:
        """The bytes of the file `name` among the Ray logs of a node. Raises OSError if they cannot be had."""
        where: dict[str, str | int] = {"node_id": node_id, "filename": name, "lines": -1, "timeout": _WHOLE_S}
        with requests.get(  # not by _do_request, which reads a reply whole
            f"{self._address}/api/v0/logs/file",
            params=where,
            headers=self._headers,
            cookies=self._cookies,
            verify=self._verify,
            stream=True,
            timeout=(_KNOCK_S, _READ_S),
        ) as reply:
            if reply.status_code != 200:
                raise OSError(" ".join(reply.text.split())[:200])
            yield from reply.iter_content(_CHUNK)


def connect(address: str) -> JobsClient:
    """A client of the Jobs server at `address`. Raises BadInputError without one, or if this machine lacks packages."""
    if importlib.util.find_spec("aiohttp") is None:
        raise BadInputError(f"ray.submit needs Ray's Jobs client, which lacks aiohttp here; {_INSTALL}")
    for name in _OVERRIDES:
        os.environ.pop(name, None)
    for module in _CHATTY:
        logging.getLogger(module).setLevel(logging.WARNING)
    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=_KNOCK_S)  # Ray's client would wait for minutes
        return JobsClient(address)
    except (requests.RequestException, ConnectionError) as error:
        reason = f"nobody answers as a Ray dashboard ({type(error).__name__})"
        raise BadInputError(f"ray.submit {address}: {reason}; {_LOOK}") from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"ray.submit {address}: not a Ray dashboard ({one_line(error)}); {_LOOK}") from error


def send(client: JobsClient, what: Submission) -> None:
    """Starts the job. Raises BadInputError if the cluster does not take it."""
    with tempfile.TemporaryDirectory(prefix="wpray-") as folder:
        pack(what, Path(folder))
        # The second: the driver names its actors' environment itself, with some of the same variables.
        env_vars = {**passed_on(), "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
        job = {
            "entrypoint": "python -m wpray.jobs.remote",
            "submission_id": what.job_id,
            "runtime_env": {"working_dir": folder, "env_vars": env_vars},
            "metadata": {name: what.config[name] for name in ("task_suite", "policy")},
        }
        try:
            _submit(client, job)
        except (RuntimeError, OSError, ValueError) as error:
            remedy = "the head needs ray[default] and a living job agent, see dashboard_agent.log there"
            reason = f"the cluster did not take the job ({one_line(error)})"
            raise BadInputError(f"ray.submit: {reason}; {remedy}") from error


def _submit(client: JobsClient, job: dict[str, Any]) -> None:
    """Waits, as long as Ray itself does each time, for the job agent of a head that has just started."""
    for left in reversed(range(_TRIES)):
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if left == 0 or _NO_AGENT not in str(error):
                raise


def details(client: JobsClient, job_id: str) -> JobDetails:
    """What the cluster knows of a job. Raises BadInputError if there is no such job, OSError if it does not answer."""
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise BadInputError(f"ray.job: the cluster knows no job {job_id}; see: ray job list") from error
        raise OSError(one_line(error)) from error


def new_job_id() -> str:
    """Names a job and its files."""
    return f"wpray-{secrets.token_hex(6)}"


def one_line(error: BaseException) -> str:
    """An error's text as one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
