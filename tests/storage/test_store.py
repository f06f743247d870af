"""Every kind of store keeps the same promises, and an unusable one is refused with a clear line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.storage.conftest import connect
from tests.storage.servers import S3
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.doctor.resources import check_output
from wpray.errors import BadInputError
from wpray.launch import main
from wpray.storage.fetch import fetch
from wpray.storage.store import Store, StoreError


def test_files_go_there_and_come_back(store: Store, tmp_path: Path) -> None:
    assert store.sizes() == {} and store.list_names() == set() and store.read("a/b.txt") is None
    assert not store.holds("a/b.txt") and store.modified("nothing") is None
    store.write("a/b.txt", b"old and long")
    store.write("a/b.txt", b"new")
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 10_000)
    store.upload("big", source)
    assert store.sizes() == {"a/b.txt": 3, "big": 2_560_000}
    assert store.list_names() == {"a", "big"} and store.holds("a/b.txt") and not store.holds("a")
    assert store.read("a/b.txt") == b"new"
    fetch(store, ["a/b.txt", "big"], tmp_path / "copy")
    assert (tmp_path / "copy" / "big").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*") if path.is_file()) == ["b.txt", "big"]
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    assert store.sizes() == {"big": 2_560_000}


def test_what_is_not_there_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read nothing"):
        fetch(store, ["nothing"], tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())
    with pytest.raises(FileNotFoundError):
        store.upload("a", tmp_path / "nothing")
    assert store.sizes() == {}


def test_checking_leaves_nothing_and_tells_the_store_s_time(store: Store) -> None:
    now = store.check()
    results = check_output(Config(task_suite="fake", output_dir=str(store.url)))
    assert [(result.status, result.message) for result in results][1:] == [("pass", f"{store.url} can be written")]
    assert store.sizes() == {}
    if store.url.scheme != "memory":  # fsspec's memory reports it in another way
        assert now is not None and abs(datetime.now(UTC) - now) < timedelta(seconds=5)


def test_the_same_store_by_its_endpoint(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(s3.url("endpoint")).write("a", b"here")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    url = f"{s3.url('endpoint')}?endpoint_override=127.0.0.1:{s3.port}&scheme=http"
    assert connect(url).read("a") == b"here"


def _refused(capsys: pytest.CaptureFixture[str], url: str, *argv: str) -> str:
    assert run_command(main, ["--task_suite", "fake", "--output_dir", url, *argv]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("s3://AKIA:hush@bucket/x", "credentials come from the environment"),
        ("s3:/bucket/x", "write it as s3://BUCKET/PATH"),
        ("nope://place/x", "Protocol not known: nope; use s3://"),
        ("sftp://host/x", "pip install paramiko"),
        ("s3://no-such-bucket/x", "NO_SUCH_BUCKET"),
        ("s3://bucket/x?region=a b", "Cannot parse URI"),
        ("memory://x?region=a", "takes no options"),
    ],
)
def test_launch_refuses_a_place_that_cannot_be_used(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, hint: str
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", forbidden)
    said = _refused(capsys, url)
    assert hint in said and "hush" not in said and "do-not-write-me" not in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInputError):
        check_output(Config(task_suite="fake", output_dir=url))


def test_without_permission_or_server_it_is_one_line(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.let_nobody_in()
    try:
        said = _refused(capsys, s3.url("x"))
    finally:
        s3.let_everybody_in()
    assert "INVALID_ACCESS_KEY_ID" in said and "credentials in the environment" in said
    said = _refused(capsys, "s3://results/x?endpoint_override=127.0.0.1:9&scheme=http")
    assert "NETWORK_CONNECTION" in said and "check the URL, the network" in said
    assert not list(tmp_path.iterdir())


def test_reading_survives_a_busy_moment(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a", b"content")
    opened, tries = store._opened, []

    def busy(name: str) -> Any:
        tries.append(name)
        if len(tries) % 3:
            raise OSError("busy")
        return opened(name)

    monkeypatch.setattr(store, "_opened", busy)
    assert store.read("a") == b"content"
    fetch(store, ["a"], tmp_path / "here")
    assert (tmp_path / "here" / "a").read_bytes() == b"content"
    assert len(tries) == 6
    monkeypatch.setattr(store, "_opened", lambda name: opened(f"no{name}"))
    assert store.read("a") is None


def test_videos_need_a_folder(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "videos need a folder" in _refused(capsys, "out", "--video_out_path", s3.url("videos"))
    assert not list(tmp_path.iterdir())
