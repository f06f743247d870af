"""Follows a job: its output as it comes, through lost connections, and what it ended with."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from typing import cast

from ray.job_submission import JobDetails, JobStatus

from wpray.errors import RunStoppedError
from wpray.jobs.client import JobsClient, details, one_line

_QUIET_S = 60.0  # after so long a silence the connection is made anew: it may be dead
_PAUSE_S = 2.0
_PATIENCE_S = 600.0  # so long a workstation's network may be gone
_TRIES = 5  # to read the end of the output of a job that has ended
_BEGINS = "Running entrypoint for job"
_KNOWN_CODES = (1, 2)


def follow(client: JobsClient, job_id: str, write: Callable[[str], object] = sys.stdout.write) -> JobDetails:
    """Passes on what the job prints until it has ended; returns how it ended.

    Raises RunStoppedError if the cluster has not answered for ten minutes, BadInputError if there is no such job.
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
                tries_left -= 1  # its output may have been cut off, or be gone with its node
                if whole or tries_left == 0:
                    return found
        time.sleep(_PAUSE_S)


def exit_code(found: JobDetails) -> tuple[int, str]:
    """The job's own exit code, or 1 and a line that says why it has none."""
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
    """Passes text on from where the job itself begins, each character once."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen = 0  # characters that came, over all connections
        self._head: str | None = ""  # what Ray says before the job begins; None once it has begun

    def connection(self) -> Callable[[str], None]:
        """Where to put what a new connection brings, which begins with the first character again."""
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
    """Whether the cluster itself ended the output."""
    import aiohttp  # here: whether it is installed has been checked by now

    try:
        return asyncio.run(_tail(client, job_id, output))
    except (aiohttp.ClientError, OSError, RuntimeError):
        return False


async def _tail(client: JobsClient, job_id: str, output: _Output) -> bool:
    """One connection, until its other side ends it (True) or nothing has come for a while."""
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
