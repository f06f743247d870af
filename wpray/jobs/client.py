"""Client of the Jobs server on a cluster's head, which uses only the dashboard's port."""

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

from wpray.cluster.process_env import passed_on
from wpray.errors import BadInputError
from wpray.jobs.package import Submission, pack

_INSTALL = "run: bash cluster/bootstrap.sh setup cluster (or pip install 'wpray[cluster]')"
_LOOK = "start Ray there with ray[default], and see that the port is forwarded (ray dashboard CLUSTER.yaml)"
_KNOCK_S = 10.0
_READ_S = 120.0  # longest silence in the middle of a file
_WHOLE_S = 24 * 3600  # Ray's own limit of 30 s per file is too short for a slow connection
_TRIES = 6
_NO_AGENT = "No available agent"  # Ray's message after it has waited 10 s for one
_CHUNK = 2**20
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
# RAY_ADDRESS would override the address in the configuration.
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class JobsClient(JobSubmissionClient):
    """Ray's client, extended to read files of a node's log folder in bounded memory."""

    def read_log(self, node_id: str, name: str) -> Generator[bytes, None, None]:
        """Yield the bytes of the file `name` from a node's Ray logs. Raise OSError if it cannot be read."""
        where: dict[str, str | int] = {"node_id": node_id, "filename": name, "lines": -1, "timeout": _WHOLE_S}
        with requests.get(  # _do_request would read the whole reply into memory
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
    """Return a client of the Jobs server at `address`.

    Raise BadInputError if there is no server, or if this machine lacks packages.
    """
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
    """Start the job. Raise BadInputError if the cluster does not accept it."""
    with tempfile.TemporaryDirectory(prefix="wpray-") as folder:
        pack(what, Path(folder))
        # The second variable is needed because the driver sets some of the same variables for its actors.
        env_vars = {**passed_on(), "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
        job = {
            "entrypoint": "python -m wpray.jobs.remote",
            "submission_id": what.job_id,
            "runtime_env": {"working_dir": folder, "env_vars": env_vars},
            "metadata": {name: _text(what.config[name]) for name in ("task_suite", "policy")},
        }
        try:
            _submit(client, job)
        except (RuntimeError, OSError, ValueError) as error:
            remedy = "the head needs ray[default] and a living job agent, see dashboard_agent.log there"
            reason = f"the cluster did not take the job ({one_line(error)})"
            raise BadInputError(f"ray.submit: {reason}; {remedy}") from error


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _submit(client: JobsClient, job: dict[str, Any]) -> None:
    """Submit the job, waiting for the job agent of a head that has just started."""
    for left in reversed(range(_TRIES)):
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if left == 0 or _NO_AGENT not in str(error):
                raise


def details(client: JobsClient, job_id: str) -> JobDetails:
    """Return the details of a job. Raise BadInputError if it does not exist, OSError if the cluster does not answer."""
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise BadInputError(f"ray.job: the cluster knows no job {job_id}; see: ray job list") from error
        raise OSError(one_line(error)) from error


def new_job_id() -> str:
    """Return a new name for a job and its files."""
    return f"wpray-{secrets.token_hex(6)}"


def one_line(error: BaseException) -> str:
    """Return the text of an error as one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
