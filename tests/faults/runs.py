"""Starts real runs in processes of their own, does them harm, and compares what is left with an undisturbed run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from wpray.results.schema import OUTCOME_COLUMNS

ROOT = Path(__file__).parents[2]
SLOW = "tests.faults.policies.slow"
_NUMBERS = itertools.count()
ENV, POLICY, RENDER = "ray::EnvActorImpl", "ray::PolicyActorImpl", "ray::RenderActorImpl"
SAME_DECISIONS = ("suite", "task_id", "trial", "kind", "step", "plan_index", "segment_index", "waypoints", "durations")


@dataclass
class Run:
    """A launched evaluation."""

    process: subprocess.Popen[bytes]
    folder: Path
    output: Path  # what it prints
    said: str = ""  # all that it printed, once it has ended

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def text(self) -> str:
        return self.said or self.output.read_text(errors="replace")

    @property
    def finished_trials(self) -> int:
        return len(attempts(self.folder))

    def actors(self, kind: str, working: bool = False) -> list[psutil.Process]:
        """Its Ray actors of a kind; `working`: those that run a trial now."""
        title = kind + (".run" if working else "")
        return [child for child in self._children() if _title(child).startswith(title)]

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 60.0) -> bool:
        """Until `condition`, or the run's end; False if neither came in time or it ended before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.alive:
            if condition():
                return True
            time.sleep(0.05)
        return bool(condition())

    def end(self, timeout_s: float = 180.0) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            tail = self.text[-3000:]
            self.kill()
            raise AssertionError(f"still running after {timeout_s:.0f} s:\n{tail}") from None

    def kill(self) -> list[psutil.Process]:
        """`kill -9` of the driver; returns those of its actors that have not ended by themselves soon after."""
        children, actors = self._children(), self.actors("ray::")
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _, left = psutil.wait_procs([actor for actor in actors if "Agent" not in _title(actor)], timeout=10)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        return [actor for actor in left if not _has_ended(actor)]

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []


def _has_ended(process: psutil.Process) -> bool:
    """Return True also for a zombie: it has ended, and its adoptive parent may be slow to collect it."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def command(folder: Path | str, *options: str, policy: str = SLOW, suite: str = "fake") -> list[str]:
    """The command line of a run of the fake environment."""
    base = [sys.executable, "-m", "wpray.launch", "--task_suite", suite, "--policy", policy, "--video.mode", "none"]
    return [*base, "--output_dir", str(folder), *options]


@contextmanager
def launched(
    folder: Path,
    *options: str,
    policy: str = SLOW,
    suite: str = "fake",
    output: str | None = None,
    cwd: Path = ROOT,
    **environ: str,
) -> Iterator[Run]:
    """A run that has begun; killed, if it has not ended, on the way out.

    `output` is its output_dir, if that is not `folder`, which then is where its files are on this disk.
    """
    number = next(_NUMBERS)
    said = Path(tempfile.gettempdir()) / f"wpray-faults-{os.getpid()}-{number}.out"  # not on a disk that is filled
    with said.open("wb") as file:
        process = subprocess.Popen(
            command(output or folder, *options, policy=policy, suite=suite),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            start_new_session=True,
        )
    run = Run(process, folder, said)
    try:
        yield run
    finally:
        run.kill()
        run.said = run.text
        said.unlink()


def undisturbed(folder: Path, *options: str, policy: str = SLOW, suite: str = "fake") -> Path:
    """The folder of a run that nothing happens to."""
    with launched(folder, *options, policy=policy, suite=suite) as run:
        assert run.end() == 0, run.text[-3000:]
    return folder


def assert_same(folder: Path, reference: Path, but: Sequence[tuple[int, int]] = ()) -> None:
    """Exactly one row a trial; outcomes, decisions and trajectories as in `reference`, but for some (task, trial).

    The test policies that do harm answer as the harmless one does: their name is not compared.
    """
    rows, expected = outcomes(folder), outcomes(reference)
    keys = Counter((row["task_id"], row["trial"]) for row in rows)
    assert max(keys.values()) == 1 and len(keys) == len(expected), f"{len(rows)} rows of {len(keys)} trials"
    excepted = set(but)
    assert _without(rows, excepted) == _without(expected, excepted)
    assert _without(_decisions(folder), excepted) == _without(_decisions(reference), excepted)
    for path in sorted((reference / "trajectories").iterdir()):
        task, trial = (int(number) for number in re.findall(r"_(\d{3})_(\d{5})\.", path.name)[0])
        if (task, trial) not in excepted:
            assert (folder / "trajectories" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not list(folder.rglob("*.tmp")), "half-written files are left"


def outcomes(folder: Path) -> list[dict[str, object]]:
    """The merged table's outcome columns."""
    columns = [name for name in OUTCOME_COLUMNS if name != "policy"]
    rows: list[dict[str, object]] = pq.read_table(folder / "episodes.parquet", columns=columns).to_pylist()
    return rows


def attempts(folder: Path) -> dict[tuple[int, int], tuple[object, ...]]:
    """(task, trial) -> what tells the attempt behind its row, in a part or in the merged table, from any other."""
    columns = ["task_id", "trial", "started_at", "ended_at", "worker", "status"]
    files = [*(folder / "parts").glob("*/*.parquet"), folder / "episodes.parquet"]
    found: dict[tuple[int, int], tuple[object, ...]] = {}
    for path in sorted(files, key=lambda path: path.parent != folder):  # parts last: they replace errors
        with contextlib.suppress(FileNotFoundError):  # just merged, or not yet
            for row in pq.ParquetFile(path).read(columns=columns).to_pylist():
                found[row.pop("task_id"), row.pop("trial")] = tuple(row.values())
    return found


def errors(folder: Path) -> dict[tuple[int, int], tuple[str, str]]:
    """(task, trial) -> (type, message) of the error rows."""
    columns = ["task_id", "trial", "status", "error_type", "error_message"]
    rows = pq.read_table(folder / "episodes.parquet", columns=columns).to_pylist()
    return {
        (row["task_id"], row["trial"]): (row["error_type"], row["error_message"])
        for row in rows
        if row["status"] == "error"
    }


def run_info(folder: Path) -> dict[str, object]:
    info: dict[str, object] = json.loads((folder / "run.json").read_text())
    return info


def sessions(folder: Path) -> list[dict[str, Any]]:
    """Return what run.json says of the run's sessions."""
    listed: list[dict[str, Any]] = json.loads((folder / "run.json").read_text())["sessions"]
    return listed


def harm(run: Run, rng: random.Random, kind: str, signal_number: int, working: bool = False) -> bool:
    """Sends a signal to one of the run's actors, picked at random; False if there is none."""
    victims = run.actors(kind, working)
    if not victims:
        return False
    victim = rng.choice(victims)
    try:
        victim.send_signal(signal_number)
    except psutil.Error:
        return False
    return True


def harm_repeatedly(
    run: Run,
    rng: random.Random,
    faults: Sequence[tuple[str, int]],
    pause_s: tuple[float, float],
) -> int:
    """Does (actor kind, signal) after signal at random moments while the run works; returns how many were done."""
    done = 0
    for kind, number in faults:
        time.sleep(rng.uniform(*pause_s))
        # Not twice at once: an env actor that is being started has no trial in hand that could be lost.
        if not run.wait_for(lambda kind=kind: run.actors(kind, working=kind == ENV)):
            break
        done += run.alive and harm(run, rng, kind, number, working=kind == ENV)
    return done


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _decisions(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(folder / "decisions.parquet", columns=[*SAME_DECISIONS]).to_pylist()
    return rows


def _without(rows: Sequence[dict[str, object]], keys: set[tuple[int, int]]) -> list[dict[str, object]]:
    return [row for row in rows if (row["task_id"], row["trial"]) not in keys]
