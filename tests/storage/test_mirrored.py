"""A run's folder and its store keep what is finished on either side, on whichever machine the next driver runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.results.recorded import START, _episode, write_run
from tests.storage.conftest import connect
from tests.storage.servers import S3
from wpray.benchmarks.fake.environment import fake_tasks
from wpray.cli.command import run_command
from wpray.compare import main as compare
from wpray.errors import BadInputError
from wpray.report.page import write_report
from wpray.results import load
from wpray.results.encode import EncodedEpisode
from wpray.results.merge import merge
from wpray.results.mirrored import MirroredFolder, staging_path
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder
from wpray.storage import lease
from wpray.storage.store import Store
from wpray.storage.uploader import Uploader
from wpray.storage.url import StoreUrl, location_of
from wpray.types import Trial
from wpray.video.render import jobs_for

INFO = {"run_id": "first", "started_at": START.isoformat(), "config": {}}
Opened = Callable[..., MirroredFolder]


@pytest.fixture
def url(s3: S3, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    name = f"{tmp_path.name}/run"
    return f"memory://{name}" if getattr(request, "param", "s3") == "memory" else s3.url(name)


@pytest.fixture
def there(url: str) -> Store:
    return connect(url)


@pytest.fixture
def opened(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Yield a function that opens the run as a driver on the named machine; folders are closed at the end."""
    monkeypatch.setattr(lease, "_SETTLE_S", 0.01)
    folders = []

    def get(machine: str = "one") -> MirroredFolder:
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / machine)
        place = location_of(url)
        assert isinstance(place, StoreUrl)
        folder = MirroredFolder(place)
        folder.path = folder.path.absolute()
        folder.open()
        folders.append(folder)
        return folder

    yield get
    for folder in folders:
        folder.close()


def _outcome(trial: int, success: bool | None = True) -> EncodedEpisode:
    return _episode(Trial(fake_tasks()[0], trial, 0), success, trial, 30, 1)


def _record(
    folder: MirroredFolder, *outcomes: bool | None, info: dict[str, object] = INFO, merged: bool = True
) -> None:
    """Write trials 0, 1, ... and end as a driver does; not `merged`: as one that was killed before its merge."""
    folder.write_info(info)
    for trial, success in enumerate(outcomes):
        folder.write_episodes(_outcome(trial, success))
    if merged:
        merge(folder)
        folder.flush()
    folder.close()


def _keys(folder: RunFolder) -> set[int]:
    return {trial for _, _, trial in folder.finished()}


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_store_ends_with_what_the_folder_holds(opened: Opened, there: Store) -> None:
    folder = opened()
    assert _keys(folder) == set()
    _record(folder, True, False, None)
    files = _files(folder.path)
    assert there.sizes() == {name: len(data) for name, data in files.items()}
    assert {name: there.read(name) for name in files} == files
    assert {"episodes.parquet", "run.json", "trajectories/fake_000_00001.parquet"} <= files.keys()
    assert not [name for name in files if name.startswith("parts/")], "they are in the tables"


def test_another_machine_goes_on_with_what_is_finished(opened: Opened, there: Store) -> None:
    first = opened("one")
    _record(first, True, False, None)
    second = opened("two")
    assert second.path != first.path and second.read_info() == INFO
    assert _keys(second) == {0, 1}
    for name, data in _files(second.path).items():
        assert (first.path / name).read_bytes() == data
    second.write_episodes(_outcome(2))
    second.close()
    back = opened("one")  # still has the error row, while the store has the outcome
    assert _keys(back) == {0, 1, 2}


def test_what_had_not_arrived_when_the_driver_died_is_brought_later(opened: Opened, there: Store) -> None:
    _record(opened(), True, False, merged=False)
    there.delete("parts/fake/000_00001.parquet")
    there.delete("trajectories/fake_000_00001.parquet")
    folder = opened()
    assert _keys(folder) == {0, 1}
    assert {"parts/fake/000_00001.parquet", "trajectories/fake_000_00001.parquet"} <= there.sizes().keys()


def test_a_driver_killed_between_its_merge_and_the_upload_of_the_tables_loses_nothing(
    opened: Opened, there: Store
) -> None:
    folder = opened("one")
    _record(folder, True, False, merged=False)
    for name in there.sizes():
        if "000_00001" in name:
            there.delete(name)  # the upload in hand
    merge(folder)  # and then, before `flush`, kill -9: the parts here are gone
    assert not folder.parts() and "episodes.parquet" not in there.sizes()
    second = opened("two")
    assert _keys(second) == {0}, "the store has no more"
    second.write_episodes(_outcome(2, False))
    merge(second)
    second.flush()
    second.close()
    assert not [name for name in there.sizes() if name.startswith("parts/")]
    back = opened("one")  # its tables hold trial 1 alone, the store's trial 2
    assert _keys(back) == {0, 1, 2}
    assert "trajectories/fake_000_00001.parquet" in there.sizes()
    merge(back)
    back.flush()
    back.close()
    run = load(str(there.url))
    assert (
        run.episodes["trial"].to_pylist() == [0, 1, 2]
        and run.decisions["trial"].to_pylist() == [0] * 3 + [1] * 3 + [2] * 3
    )
    assert not run.notes and not [name for name in there.sizes() if name.startswith("parts/")]
    assert _keys(opened("three")) == {0, 1, 2}


def test_parts_stay_in_the_store_until_the_tables_with_their_rows_are_there(
    opened: Opened, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of what reaches the store, by which a kill between any two steps leaves every row there."""
    folder = opened()
    _keys(folder)
    steps = []
    upload, delete = Store.upload, Store.delete
    monkeypatch.setattr(
        Store, "upload", lambda s, name, *more: (upload(s, name, *more), steps.append(("put", name)))[0]
    )
    monkeypatch.setattr(Store, "delete", lambda s, name: (steps.append(("delete", name)), delete(s, name))[1])
    _record(folder, True, False, None)
    first = min(steps.index(step) for step in steps if step[0] == "delete" and step[1].startswith("parts/"))
    assert first > max(steps.index(("put", name)) for name in ("episodes.parquet", "decisions.parquet"))


@pytest.mark.parametrize("name", ["parts/fake/000_00001.parquet", "trajectories/fake_000_00001.parquet"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"", lambda data: data[:99] + b"?" + data[100:]]
)
def test_what_is_damaged_in_the_store_is_set_aside_and_runs_again(
    opened: Opened, there: Store, name: str, damage: Callable[[bytes], bytes]
) -> None:
    _record(opened("one"), True, False, True, merged=False)
    whole = there.read(name)
    assert whole is not None
    there.write(name, damage(whole))
    folder = opened("two")
    assert _keys(folder) == {0, 2}
    part = "parts/fake/000_00001.parquet"
    assert f"{part}.damaged" in there.sizes() and part not in there.sizes()
    folder.write_episodes(_outcome(1, False))
    folder.flush()
    assert there.read("trajectories/fake_000_00001.parquet") == _outcome(1, False).trajectory
    assert load(str(there.url)).episodes["trial"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b""])
def test_a_trial_in_the_tables_whose_trajectory_is_damaged_in_the_store_runs_again(
    opened: Opened, there: Store, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    name = "trajectories/fake_000_00001.parquet"
    _record(opened("one"), True, False, True)
    whole = there.read(name)
    assert whole is not None
    there.write(name, damage(whole))
    folder = opened("two")
    assert _keys(folder) == {0, 2}
    assert "the trajectory is damaged, or of another attempt; its trial runs again" in caplog.text
    folder.write_episodes(_outcome(1, False))
    merge(folder)
    folder.flush()
    assert there.read(name) == whole
    assert load(str(there.url)).episodes["trial"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("url", ["memory"], indirect=True)  # the S3 test server normalizes such names itself
def test_names_in_a_store_cannot_leave_the_folder(opened: Opened, there: Store, tmp_path: Path) -> None:
    _record(opened("one"), True, merged=False)
    evil = there.read("parts/fake/000_00000.parquet")
    assert evil is not None
    names = ["parts/../../evil.parquet", "parts/../000_00001.parquet", "trajectories/../../evil.parquet"]
    names += ["videos/.evil.mp4", "videos/x/evil.mp4", "evil.parquet", "parts/fake/evil.parquet", ".lock/evil"]
    for name in names:
        there.write(name, evil)
    assert any(".." in name for name in there.sizes()), "the store keeps such names"
    folder = opened("two")
    assert _keys(folder) == {0}
    load(str(there.url)).trajectory(("fake", 0, 0))
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name or path.name == "000_00001.parquet"]


def test_a_folder_of_another_run_is_moved_out_of_the_way(opened: Opened, there: Store) -> None:
    folder = opened("one")
    _record(folder, True, True)
    kept = _files(folder.path)
    for name in there.sizes():
        there.delete(name)
    again = opened("one")  # a new run, because the results were removed from the store
    assert again.read_info() is None and _keys(again) == set()
    _record(again, False, info=INFO | {"run_id": "second"})
    assert _files(folder.path.with_name(f"{folder.path.name}-before-1")) == kept
    _record(opened("two"), info=INFO | {"run_id": "second"})
    assert _keys(opened("one")) == {0}


def test_a_second_driver_is_refused_from_anywhere(opened: Opened) -> None:
    opened("one")
    with pytest.raises(BadInputError, match="another driver is writing to"):
        opened("one")
    with pytest.raises(BadInputError, match=r"another driver \(process \d+ on .*\) is writing to s3://"):
        opened("two")


def test_readers_take_a_url(
    opened: Opened, there: Store, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "local", [[True, False, None]], steps=30)
    local = load(tmp_path / "local")
    _record(opened(), True, False, None)
    run = load(url)
    columns = ["task_id", "trial", "status", "num_steps"]
    assert run.episodes.select(columns).equals(local.episodes.select(columns))
    assert not (run.path / "parts").exists() and not (run.path / "trajectories").exists(), "tables are enough"
    assert run.trajectory(("fake", 0, 1)).num_rows == 30
    with pytest.raises(BadInputError, match="no trajectory of"):
        run.trajectory(("fake", 0, 2))
    assert run.video("videos/none.mp4") is None and run.video("../../none.mp4") is None
    there.write("videos/v.mp4", b"moov")
    found = run.video("videos/v.mp4")
    assert found is not None and found.read_bytes() == b"moov"
    (job,) = jobs_for(run, run.episodes.to_pylist()[:1])
    assert job.trajectory.read_bytes() == _outcome(0).trajectory
    assert run_command(compare, [url, str(tmp_path / "local"), "--anyway"]) == 0
    assert f"A  {url}" in capsys.readouterr().out
    page = write_report(url)
    assert page.parent == run.path and b"<html" in page.read_bytes()[:200]


def test_readers_see_a_run_under_way_and_then_its_end(opened: Opened, there: Store, url: str) -> None:
    with pytest.raises(BadInputError, match="holds no run"):
        load(url)
    folder = opened()
    folder.write_info(INFO)
    with pytest.raises(BadInputError, match="no episode has finished yet"):
        load(url)
    for trial in range(3):
        folder.write_episodes(_outcome(trial))
        folder._running.flush()
        assert load(url).episodes.num_rows == trial + 1
    merge(folder, VideoFolder.of(folder.path, None))
    folder.flush()
    run = load(url)
    assert run.episodes.num_rows == 3 and not (run.path / "parts").exists()
    shutil.rmtree(run.path)


def test_a_refused_configuration_has_touched_nothing(opened: Opened, there: Store, url: str, tmp_path: Path) -> None:
    from wpray.config import Config
    from wpray.run.output import choose_folder
    from wpray.run.output import opened as opened_for

    _record(opened("one"), True)
    before = there.sizes()
    (tmp_path / "two").mkdir()
    for config in (Config(task_suite="fake", output_dir=url), Config(output_dir=url, resume="never")):
        with pytest.raises(BadInputError, match="output_dir: "), opened_for(choose_folder(config), config):
            pass
    there.write("../other/thesis.tex", b"my only copy")
    with pytest.raises(BadInputError, match="holds files but no run"):
        choose_folder(Config(output_dir=url.rpartition("/")[0] + "/other"))
    assert there.sizes() == before
    assert staging_path(there.url).name in {path.name for path in (tmp_path / "one" / "runs").iterdir()}


def test_ctrl_c_while_the_rest_is_uploaded_gives_lock_and_lease_back(
    opened: Opened, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    folder = opened()
    folder.write_info(INFO)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Uploader, "flush", interrupted)
        folder.close()
    assert there.read(lease.NAME) is None and not folder.is_locked()
