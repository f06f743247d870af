"""Download of a result folder: all of it and nothing else, each file complete or absent."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import pytest

from wpray.errors import RunStoppedError
from wpray.jobs.fetch import Fetched, fetch, local_folder
from wpray.jobs.manifest import ManifestError, ManifestFile, RunManifest, make_manifest, read_manifest

CONTENT = {
    "episodes.parquet": b"rows" * 1000,
    "parts/fake/000_00000.parquet": b"part",
    "trajectories/empty.parquet": b"",
    "videos/rollout.mp4": bytes(range(256)) * 5000,
    "run.json": b'{"run_id": "abc"}',
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a result folder on the cluster, and change to another one as the workstation."""
    folder = tmp_path / "cluster" / "eval"
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


class Cluster:
    """Cluster that serves a folder in small chunks, counts requests, and fails or lies on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, make_manifest(folder).as_json()
        self.asked: list[str] = []
        self.change: Callable[[str, bytes, int], bytes] = lambda name, chunk, time: chunk
        self._lock = threading.Lock()

    def read(self, name: str) -> Generator[bytes, None, None]:
        with self._lock:
            self.asked.append(name)
            time = self.asked.count(name)
        data = (self.folder / name).read_bytes()
        for start in range(0, len(data), 1000):
            yield self.change(name, data[start : start + 1000], time)

    def fetch(self, output_dir: str | None = None) -> Fetched:
        return fetch(lambda: iter([self.manifest]), self.read, output_dir)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_comes_but_locks_links_and_half_written_files(there: Path) -> None:
    (there / ".lock").touch()
    (there / "parts" / ".half.tmp").touch()
    (there / "link").symlink_to("/etc/passwd")
    cluster = Cluster(there)
    got = cluster.fetch()
    assert got.folder == Path("runs/eval") and got.already == 0
    assert _contents(got.folder) == CONTENT
    assert cluster.asked[-1] == "run.json"


@pytest.mark.parametrize(
    ("output_dir", "folder"), [(None, "runs/eval"), ("/data/eval", "runs/eval"), ("mine/it", "mine/it")]
)
def test_an_absolute_path_is_the_clusters_a_relative_one_is_also_here(
    there: Path, output_dir: str | None, folder: str
) -> None:
    assert Cluster(there).fetch(output_dir).folder == Path(folder)


def test_what_is_here_is_kept_and_what_has_changed_comes(there: Path) -> None:
    Cluster(there).fetch()
    (there / "episodes.parquet").write_bytes(b"more rows")
    Path("runs/eval/notes.txt").write_text("mine")
    cluster = Cluster(there)
    assert cluster.fetch().already == len(CONTENT) - 1
    assert cluster.asked == ["episodes.parquet"]
    assert _contents(Path("runs/eval")) == {**CONTENT, "episodes.parquet": b"more rows", "notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["run.json", "notes.txt"])
def test_another_runs_folder_is_not_touched(there: Path, name: str) -> None:
    other = Path("runs/eval") / name
    other.parent.mkdir(parents=True)
    other.write_text('{"run_id": "other"}')
    assert Cluster(there).fetch().folder == Path("runs/eval-2")
    assert _contents(other.parent) == {name: b'{"run_id": "other"}'}


def test_a_broken_connection_is_tried_again(there: Path) -> None:
    def broken_twice(name: str, chunk: bytes, time: int) -> bytes:
        if name.startswith("videos") and time < 3:
            raise ConnectionError("broken pipe")
        return chunk

    cluster = Cluster(there)
    cluster.change = broken_twice
    assert _contents(cluster.fetch().folder) == CONTENT


@pytest.mark.parametrize(
    "change",
    [lambda chunk: chunk[::-1], lambda chunk: chunk[:-1], lambda chunk: chunk + b"!"],
    ids=["other bytes", "too short", "too long"],
)
def test_nothing_damaged_or_half_written_stays_and_the_next_fetch_goes_on(
    there: Path, change: Callable[[bytes], bytes]
) -> None:
    def spoilt(name: str, chunk: bytes, time: int) -> bytes:
        return change(chunk) if name.startswith("videos") else chunk

    cluster = Cluster(there)
    cluster.change = spoilt
    with pytest.raises(RunStoppedError, match="the results are not all here: "):
        cluster.fetch()
    here = _contents(Path("runs/eval"))
    assert "run.json" not in here and not [name for name in here if "rollout" in name or ".tmp" in name]
    again = Cluster(there)
    assert again.fetch().folder == Path("runs/eval")
    assert "episodes.parquet" not in again.asked
    assert _contents(Path("runs/eval")) == CONTENT


def test_a_run_without_a_list_of_files_is_said_in_a_line(there: Path) -> None:
    def missing() -> Generator[bytes, None, None]:
        raise OSError("A file is not found at: x-results.json")
        yield b""

    with pytest.raises(RunStoppedError, match="the results are not all here: A file is not found"):
        fetch(missing, Cluster(there).read, None)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a//b",
        "./a",
        "a/.",
        ".bashrc",
        ".ssh/key",
        "",
        ".",
        "a\\..\\b",
        "a\nb",
        "a/",
    ],
)
def test_names_that_leave_the_folder_are_refused_before_anything_is_written(there: Path, name: str) -> None:
    hostile = ManifestFile(name, 4, hashlib.sha256(b"evil").hexdigest())
    good = make_manifest(there)
    cluster = Cluster(there)
    cluster.manifest = replace(good, files=(hostile, *good.files)).as_json()
    with pytest.raises(RunStoppedError, match="outside of the folder"):
        cluster.fetch()
    assert not cluster.asked and not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"folder": "/x", "run_id": "a", "files": []}',
        b'{"folder": "/x", "run_id": "", "files": [{"name": "run.json", "size": 1, "sha256": "%s"}]}' % (b"0" * 64),
        b'{"folder": "/x", "run_id": "a", "files": [{"name": "run.json", "size": -1, "sha256": "%s"}]}' % (b"0" * 64),
        b'{"folder": "/x", "run_id": "a", "files": [{"name": "run.json", "size": 1, "sha256": "0"}]}',
        b'{"folder": "/x", "run_id": "a", "files": [{"name": "run.json", "size": 1, "sha256": "0", "mode": 7}]}',
        b'{"folder": "/x", "run_id": "a", "files": [{"name": 1, "size": 1, "sha256": "%s"}]}' % (b"0" * 64),
    ],
)
def test_an_unsound_list_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        read_manifest(data)


def test_a_list_that_names_a_file_twice_or_does_not_end_in_run_json_is_refused(there: Path) -> None:
    good = make_manifest(there)
    assert read_manifest(good.as_json()) == good
    for files in ((good.files[0], *good.files), good.files[::-1]):
        with pytest.raises(ManifestError):
            read_manifest(RunManifest(good.folder, good.run_id, files).as_json())


def test_a_folder_without_a_run_makes_no_list(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"run\.json"):
        make_manifest(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(KeyError):
        make_manifest(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == {}


@pytest.mark.parametrize(
    ("folder", "expected"), [("/home/..", "runs/run"), ("/", "runs/run"), ("/x/.eval", "runs/eval")]
)
def test_a_folder_s_name_leads_nowhere_else(there: Path, folder: str, expected: str) -> None:
    assert local_folder(None, replace(make_manifest(there), folder=folder)) == Path(expected)
