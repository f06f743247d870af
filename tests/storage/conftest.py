"""Real stores of several kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.servers import S3
from wpray.storage.store import Store
from wpray.storage.url import StoreUrl, location_of


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3:
    """Set the environment as a user of the server would, in an empty working folder."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return s3_server


@pytest.fixture(params=["s3", "memory", "local"])
def store(request: pytest.FixtureRequest, s3: S3, tmp_path: Path) -> Store:
    """Return S3 through pyarrow, or one of two stores through fsspec, of which only one replaces files atomically."""
    name = f"{tmp_path.name}/run"
    return connect(
        {"s3": s3.url(name), "memory": f"memory://{name}", "local": f"local://{tmp_path}/store"}[request.param]
    )


def connect(url: str) -> Store:
    place = location_of(url)
    assert isinstance(place, StoreUrl)
    return Store.connect(place)
