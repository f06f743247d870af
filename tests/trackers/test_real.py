"""The real packages, offline: what they hold after a run, read back by their own means."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.results.recorded import write_run
from wpray.benchmarks.fake.environment import fake_tasks
from wpray.config import Config
from wpray.results.merge import merge
from wpray.results.summary import Tally
from wpray.results.videos import VideoFolder
from wpray.results.writer import RunFolder
from wpray.run.output import RunInfo
from wpray.run.tracked import tracked
from wpray.types import Trial, TrialKey
from wpray.video.encode import encode

_CALL: Any = None  # an encoded episode, which the rates do not look at
VIDEO = "rollout_move_the_cube_0_t0_success"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "my_run"
    files = {"/runs/lr=1e-4 (1)/model.safetensors": "0f"}
    write_run(path, [[True, False], [True, None]], state="finished", policy_files=files)
    videos = VideoFolder.of(path, None)
    videos.path.mkdir()
    (videos.path / f"{VIDEO}.mp4").write_bytes(encode([np.full((64, 128, 3), 6 * n, np.uint8) for n in range(40)], 10))
    merge(RunFolder(path), videos)
    (path / "report.html").write_text("<p>the report</p>")
    return path


def _track(run: Path, tracker: str) -> None:
    """Send a run whose first episode has ended, and its end."""
    config = Config(task_suite="fake", track=tracker, track_project="study")
    folder = RunFolder(run)
    info = RunInfo(folder, folder.read_info() or {}, resumed=False)
    tally = Tally.planned([(fake_tasks()[task], 2) for task in range(2)])
    with tracked(config, folder, info, tally) as rates:
        assert rates is not None
        for task, trial, status in ((0, 0, "success"), (0, 1, "failure"), (1, 0, "success"), (1, 1, "error")):
            tally.add(TrialKey("fake", task, trial), status, 40)
            rates.on_episode(Trial(fake_tasks()[task], trial, 0), _CALL)


def _events(folder: Path) -> Iterator[Any]:
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)  # TFRecord: size, its checksum, content, its checksum
            yield Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16


def test_tensorboard(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboardX", reason="extra tensorboard")
    _track(run, "tensorboard")
    assert not caplog.records
    values = [(event.step, value) for event in _events(run / "tensorboard") for value in event.summary.value]
    rates = [(step, value.simple_value) for step, value in values if value.tag == "success_rate"]
    assert rates == [(1, 1.0), (4, pytest.approx(2 / 3))]
    assert {"success_rate_low", "success_rate_high", "errors"} <= {value.tag for _, value in values}
    texts = {value.tag: value.tensor.string_val[0].decode() for _, value in values if value.tensor.string_val}
    assert '"env.protocol": "wpray"' in texts["config/text_summary"]
    assert "| fake | 1 | move_the_cube_1 | move the cube 1 | 1 | 1 | 1.0 |" in texts["tasks/text_summary"]
    assert (run / "report.html").as_uri() in texts["report/text_summary"]
    [image] = [value.image for _, value in values if value.tag == f"videos/{VIDEO}"]
    assert (image.height, image.width) == (32, 64) and image.encoded_image_string.startswith(b"GIF")
    _track(run, "tensorboard")  # a resume adds to the folder
    assert (
        sum(value.tag == "success_rate" for event in _events(run / "tensorboard") for value in event.summary.value) == 4
    )


def _wandb_records(file: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # LevelDB's log: no header crosses a block's end
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(record)
            record = b""


def test_wandb_offline(run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("wandb", reason="extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    _track(run, "wandb")
    assert not caplog.records
    [file] = run.glob("wandb/offline-run-*/*.wandb")
    records = list(_wandb_records(file))
    [begun] = {
        (record.run.run_id, record.run.project, record.run.display_name) for record in records if record.run.run_id
    }
    assert begun == ("run", "study", "my_run")
    points = [{item.key or item.nested_key[0]: item.value_json for item in record.history.item} for record in records]
    rates = [(point["episodes"], float(point["success_rate"])) for point in points if "success_rate" in point]
    assert rates == [("1", 1.0), ("4", pytest.approx(2 / 3))]
    assert {"tasks", "report", f"videos/{VIDEO}"} <= {name for point in points for name in point}
    assert list(file.parent.glob(f"files/media/**/{VIDEO}*.mp4"))
    assert "the report" in next(file.parent.glob("files/media/html/report*.html")).read_text()
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_mlflow(run: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    mlflow = pytest.importorskip("mlflow", reason="extra mlflow")
    uris = {"sqlite": f"sqlite:///{run.parent}/ml.db", "files": (run.parent / "ml").as_uri()}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uris[store])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(run.parent)  # where a database's artifacts go
    _track(run, "mlflow")
    _track(run, "mlflow")  # a resume goes on with the same run
    assert not caplog.records
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert (found.info.run_name, found.info.status) == ("my_run", "FINISHED")
    assert found.data.params["env.protocol"] == "wpray"
    assert found.data.params["policy_files._runs_lr_1e-4 _1__model.safetensors"] == "0f"
    history = client.get_metric_history(found.info.run_id, "success_rate")
    assert [(point.step, point.value) for point in history][:2] == [(1, 1.0), (4, pytest.approx(2 / 3))]
    names = {file.path for folder in (None, "videos") for file in client.list_artifacts(found.info.run_id, folder)}
    assert names == {"config.json", "report.html", "tasks.csv", "videos", f"videos/{VIDEO}.mp4"}


def test_trackio(run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(run.parent / "trackio"))  # which is read at the import
    pytest.importorskip("trackio", reason="extra trackio")
    _track(run, "trackio")
    assert not caplog.records
    from trackio.sqlite_storage import SQLiteStorage

    points = SQLiteStorage.get_logs("study", "my_run run")
    rates = [(point["step"], point["success_rate"]) for point in points if "success_rate" in point]
    assert rates == [(1, 1.0), (4, pytest.approx(2 / 3))]
    assert {"tasks", "report", f"videos/{VIDEO}"} <= {name for point in points for name in point}
    assert list((run.parent / "trackio").rglob("*.mp4"))
