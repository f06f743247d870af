"""Names of places for results: what is accepted, and what is refused without repeating a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from wpray.errors import BadInputError
from wpray.results.mirrored import staging_path
from wpray.storage.url import StoreUrl, location_of


@pytest.mark.parametrize("text", ["runs/a", "/mnt/a:b", "C:/a", "a:b", "./s3"])
def test_folders_stay_folders(text: str) -> None:
    assert location_of(text) == Path(text)


@pytest.mark.parametrize("text", ["file:///mnt/a%20b", "file:/mnt/a b", "file://localhost/mnt/a b", "FILE:///mnt/a b"])
def test_a_file_url_is_a_folder(text: str) -> None:
    assert location_of(text) == Path("/mnt/a b")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket", "s3://bucket"),
        (
            "s3://b/a?endpoint_override=127.0.0.1:9000&scheme=http",
            "s3://b/a?endpoint_override=127.0.0.1:9000&scheme=http",
        ),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("sftp://me@host:22/a", "sftp://me@host:22/a"),
    ],
)
def test_a_url_is_a_store(text: str, known: str) -> None:
    place = location_of(text)
    assert isinstance(place, StoreUrl) and str(place) == known
    assert location_of(str(place)) == place


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("s3:/bucket/a", "s3://BUCKET/PATH"),
        ("s3://", "s3://BUCKET/PATH"),
        ("s3:///a", "s3://BUCKET/PATH"),
        ("s3://bucket/a#b", "s3://BUCKET/PATH"),
        ("s3://bucket/../other", "must not hold . or .."),
        ("s3://bucket/a/%2e%2e/b", "must not hold . or .."),
        ("file://host/a", "three slashes"),
        ("s3://[bucket/a", "not a URL"),
    ],
)
def test_what_is_no_url_is_refused(text: str, hint: str) -> None:
    with pytest.raises(BadInputError, match=hint.replace(".", r"\.")):
        location_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:SECRET@bucket/a",
        "s3://AKIA:SEC/RET@bucket/a",
        "s3://SECRET@bucket/a",
        "s3:/AKIA:SECRET@bucket/a",
        "sftp://me:SECRET@host/a",
        "abfs://box:SECRET@account/a",
        "s3://bucket/a?secret_key=SECRET",
        "s3://bucket/a?SECRET",
        "s3://bucket/a?endpoint_override=http://me:SECRET@host",
        "abfs://box@account/a?sig=SECRET",
        "file:///mnt/a?token=SECRET",
    ],
)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(BadInputError, match="credentials come from the environment") as refused:
        location_of(text)
    assert "SECRET" not in str(refused.value)


def test_the_staging_folder_follows_from_the_url_alone_and_stays_under_runs() -> None:
    urls = ["s3://bucket/a", "s3://bucket/a?region=eu", "gs://bucket/a", "s3://bucket/a/b", f"s3://{'x' * 400}/a"]
    paths = [staging_path(place) for url in urls if isinstance(place := location_of(url), StoreUrl)]
    assert len({*paths}) == len(urls) and all(path.parent == Path("runs") for path in paths)
    assert all(len(path.name) < 200 and path.name.startswith(("s3_", "gs_")) for path in paths)
    assert staging_path(StoreUrl("s3", "s3://bucket/a", "")) == paths[0]
