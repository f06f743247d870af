"""Runs that write to S3 leave the same results as on a disk, whatever happens to driver, machine or store."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import runs
from tests.storage.conftest import connect
from tests.storage.servers import S3
from wpray.results.mirrored import staging_path
from wpray.storage.fetch import fetch
from wpray.storage.store import Store

pytestmark = pytest.mark.ray
OPTIONS = ("--tasks", "0-1", "--num_trials_per_task", "8", "--num_parallel", "2")  # 16 episodes


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the same evaluation with a folder as output."""
    return runs.undisturbed(tmp_path_factory.mktemp("reference") / "run", *OPTIONS)


@dataclass
class Place:
    """URL of a run, and machines that share nothing else."""

    server: S3
    folder: Path
    store: Store

    @property
    def url(self) -> str:
        return str(self.store.url)

    def machine(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def launched(self, machine: str) -> AbstractContextManager[runs.Run]:
        cwd = self.machine(machine)
        staging = cwd / staging_path(self.store.url)
        return runs.launched(staging, *OPTIONS, output=self.url, cwd=cwd, **self.server.environ)

    def by_hand(self, machine: str, module: str = "wpray.launch") -> subprocess.Popen[str]:
        command = [part.replace("wpray.launch", module) for part in runs.command(self.url, *OPTIONS)]
        environ = {**os.environ, "PYTHONPATH": str(runs.ROOT), **self.server.environ}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.machine(machine), env=environ, stdout=pipe, stderr=pipe, text=True)

    def parts(self) -> dict[str, bytes | None]:
        return {name: self.store.read(name) for name in self.store.sizes() if name.startswith("parts/")}

    def copy(self) -> Path:
        """Copy everything in the store to a folder."""
        copy = self.folder / "copy"
        fetch(self.store, list(self.store.sizes()), copy)
        return copy


@pytest.fixture
def place(s3: S3, tmp_path: Path) -> Place:
    return Place(s3, tmp_path, connect(s3.url(f"{tmp_path.name}/run")))


def test_a_run_to_s3_leaves_what_a_run_to_a_folder_leaves(place: Place, reference: Path) -> None:
    with place.launched("one") as run:
        assert run.wait_for(lambda: run.finished_trials), run.text
        second = place.by_hand("two")
        said = second.communicate(timeout=60)[1]
        assert second.returncode == 2 and said.count("\n") == 1 and "another driver (process" in said, said
        assert run.end() == 0, run.text[-3000:]
    copy = place.copy()
    runs.assert_same(copy, reference)
    assert {path.name for path in copy.iterdir()} >= {"run.json", "run.log", "report.html", "decisions.parquet"}
    assert runs.run_info(copy)["state"] == "finished" and ".lease.json" not in place.store.sizes()
    secret = place.server.environ["AWS_SECRET_ACCESS_KEY"].encode()
    everything = [path for path in place.folder.rglob("*") if path.is_file()]
    assert not [path for path in everything if secret in path.read_bytes()] and secret.decode() not in run.text


@pytest.mark.faults
def test_the_driver_dies_its_machine_is_lost_and_the_store_goes_away_for_a_while(place: Place, reference: Path) -> None:
    with place.launched("one") as run:
        assert run.wait_for(lambda: len(place.parts()) > 3), run.text
        run.kill()
    kept = place.parts()
    assert 3 < len(kept) < 16
    shutil.rmtree(place.folder / "one")
    with place.launched("two") as run:
        assert run.wait_for(lambda: run.finished_trials > len(kept)), run.text
        place.server.stop()
        try:
            assert run.wait_for(lambda: "trying again" in run.text), run.text
            time.sleep(1)
        finally:
            place.server.start()
        assert run.end() == 0, run.text[-3000:]
    assert f"{len(kept)} of 16 episodes are finished" in run.text and "takes files again" in run.text
    assert "Traceback" not in run.text
    assert not place.parts(), "an episode is in the store twice"
    copy = place.copy()
    for name, data in kept.items():
        assert data is not None
        (path := place.folder / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    before, after = runs.attempts(place.folder / "kept"), runs.attempts(copy)
    assert before and before.items() <= after.items(), "a finished trial was lost or run again"
    runs.assert_same(copy, reference)


@pytest.mark.faults
def test_a_store_that_stays_away_pauses_and_stops_the_run_and_the_same_command_goes_on(
    place: Place, reference: Path
) -> None:
    process = place.by_hand("one", "tests.storage.impatient")
    deadline = time.monotonic() + 60
    while not place.parts() and time.monotonic() < deadline:
        time.sleep(0.1)
    place.server.stop()
    try:
        out, err = process.communicate(timeout=120)
    finally:
        place.server.start()
    assert process.returncode == 1, out + err
    assert "episodes wait for s3://" in out and "; waiting (Ctrl-C stops, keeping what is finished)" in out
    assert err.splitlines()[-1].startswith("stopped: s3://") and "the same command brings it there and goes on" in err
    assert "Traceback" not in err
    with place.launched("one") as run:
        assert run.end() == 0, run.text[-3000:]
    runs.assert_same(place.copy(), reference)
