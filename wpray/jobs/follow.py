"""Output and exit code of a job, followed across lost connections."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from typing import cast

from ray.job_submission import JobDetails, JobStatus

from wpray.errors import RunStoppedError
from wpray.jobs.client import JobsClient, details, one_line

_QUIET_S = 60.0  # silence after which the connection may be dead and is opened again
_PAUSE_S = 2.0
_PATIENCE_S = 600.0  # a workstation's network may be down this long
_TRIES = 5  # attempts to read the end of the output after the job has ended
_BEGINS = "Running entrypoint for job"
_KNOWN_CODES = (1, 2)


def follow(client: JobsClient, job_id: str, write: Callable[[str], object] = sys.stdout.write) -> JobDetails:
    """Write what the job prints until it ends; return its final details.

    Raise RunStoppedError if the cluster has not answered for ten minutes, BadInputError if there is no such job.
    """
    output = _Output(write)
    silent_since: float | None = None
    tries_left = _TRIES
    while True:
        whole = _tail_once(client, job_id, output)
        try:
            found = details(client, job_id)
        except OSError as error:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _PATIENCE_S:
                raise RunStoppedError(f"lost contact with the cluster ({one_line(error)})") from error
        else:
            silent_since = None
            if JobStatus(found.status).is_terminal():
                tries_left -= 1  # the output may be truncated, or lost with its node
                if whole or tries_left == 0:
                    return found
        time.sleep(_PAUSE_S)


def exit_code(found: JobDetails) -> tuple[int, str]:
    """Return the job's exit code and an empty string, or 1 and a line that says why there is none."""
    code, status = found.driver_exit_code, JobStatus(found.status)
    if status == JobStatus.SUCCEEDED:
        return 0, ""
    if status == JobStatus.FAILED and code in _KNOWN_CODES:
        return code, ""
    if status == JobStatus.STOPPED:
        return 1, "the job was stopped; the same command goes on where it stopped"
    if code == 127:
        return 1, "the job found no python: start Ray there with its environment's bin folder in PATH"
    ended = "without an exit code" if code is None else f"with exit code {code}"
    return 1, f"the job ended {ended}: {' '.join(str(found.message).split())[:300]}"


class _Output:
    """Filter that passes each character on once, from where the job's own output begins."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen = 0  # characters received, over all connections
        self._head: str | None = ""  # Ray's own output before the job begins; None afterwards

    def connection(self) -> Callable[[str], None]:
        """Return a sink for a new connection, whose text starts at the first character again."""
        skip = self._seen

        def put(text: str) -> None:
            nonlocal skip
            fresh = text[skip:]
            skip = max(0, skip - len(text))
            self._seen += len(fresh)
            self._pass_on(fresh)

        return put

    def _pass_on(self, text: str) -> None:
        if self._head is not None:
            self._head += text
            _, begins, rest = self._head.partition(_BEGINS)
            _, end, text = rest.partition("\n")
            if not (begins and end):
                return
            self._head = None
        self._write(text)
        sys.stdout.flush()


def _tail_once(client: JobsClient, job_id: str, output: _Output) -> bool:
    """Follow the output over one connection; return whether the cluster ended it."""
    import aiohttp  # not at the top: `connect` has checked by now that it is installed

    try:
        return asyncio.run(_tail(client, job_id, output))
    except (aiohttp.ClientError, OSError, RuntimeError):
        return False


async def _tail(client: JobsClient, job_id: str, output: _Output) -> bool:
    """Read one connection; return True if the cluster ended it, False if it fell silent."""
    put = output.connection()
    lines = cast(AsyncGenerator[str, None], client.tail_job_logs(job_id))
    try:
        while True:
            put(await asyncio.wait_for(anext(lines), _QUIET_S))
    except StopAsyncIteration:
        return True
    except TimeoutError:
        return False
    finally:
        await lines.aclose()
