"""A run is sized to a container's limits, in either version of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wpray.cluster import setup
from wpray.config import Config
from wpray.config.groups import EnvConfig, RayConfig
from wpray.doctor import resources
from wpray.errors import BadInputError
from wpray.system import hardware

_GIB = 2**30


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty machine of 64 cores."""
    monkeypatch.setattr(hardware, "_GROUPS", tmp_path)
    monkeypatch.setattr(hardware, "_OWN", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    return tmp_path


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_without_limits_the_machine_is_all_there_is(place: Path) -> None:
    assert (hardware.cores(), hardware.memory_left()) == (64, None)
    _write(place, self="0::/", memory__max="max", cpu__max="max 100000")
    assert (hardware.cores(), hardware.memory_left()) == (64, None)


def test_a_container_of_version_2_within_a_smaller_job(place: Path) -> None:
    _write(place, self="0::/job/step")
    _write(place / "job", memory__max=str(8 * _GIB), memory__current=str(3 * _GIB), cpu__max="350000 100000")
    _write(place / "job", memory__stat=f"anon 5\ninactive_file {_GIB}\nactive_file 7")
    _write(place / "job" / "step", memory__max="max", cpu__max="800000 100000")
    assert (hardware.cores(), hardware.memory_left()) == (3, 6 * _GIB)


def test_a_container_of_version_1_whose_own_path_cannot_be_seen(place: Path) -> None:
    _write(place, self="4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/")
    _write(place / "memory", memory__limit_in_bytes=str(4 * _GIB), memory__usage_in_bytes=str(_GIB))
    _write(place / "cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert (hardware.cores(), hardware.memory_left()) == (1, 3 * _GIB)
    _write(place / "memory", memory__limit_in_bytes="9223372036854771712")  # how it says that there is none
    assert resources.free_memory() == pytest.approx(_available(), rel=0.2)


def test_the_work_of_all_cores_counts_where_no_group_is_limited(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_STAT", place / "stat")
    assert hardware.busy_seconds() is None
    tick = os.sysconf("SC_CLK_TCK")
    cpus = [f"cpu{number} {tick} 0 {tick} {99 * tick} {50 * tick} 0 {tick} 0 0 0" for number in range(70)]
    _write(place, stat="\n".join(["cpu  1 2 3 4 5 6 7 8 0 0", *cpus, "intr 9"]))
    assert hardware.busy_seconds() == 64 * 3


def test_the_work_of_a_limited_group_is_its_own(place: Path) -> None:
    _write(place, self="0::/job/step", cpu__stat="usage_usec 900000000")
    _write(place / "job", cpu__max="350000 100000", cpu__stat="usage_usec 12500000\nuser_usec 1")
    _write(place / "job" / "step", cpu__max="max 100000", cpu__stat="usage_usec 1000000")
    assert hardware.busy_seconds() == 12.5
    _write(place, self="1:cpu,cpuacct:/")
    _write(place / "cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000", cpuacct__usage="2500000000")
    assert hardware.busy_seconds() == 2.5


def test_the_doctor_goes_by_the_container(place: Path) -> None:
    _write(place, self="0::/", memory__max=str(2 * _GIB), memory__current="0", cpu__max="200000 100000")
    (found,) = resources.check_memory(Config(env=EnvConfig(memory_gb=2.5)))
    assert found.status == "fail" and "2.0 GiB of memory are free" in found.message
    (greedy,) = resources.check_cores(Config(ray=RayConfig(env_cpus=3)))
    assert "this machine has 2" in greedy.message


def test_one_machine_runs_no_more_environments_than_its_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_nodes", lambda: [{"CPU": 10.0, "memory": 7.0 * _GIB}])
    asked = Config(num_parallel=10, env=EnvConfig(memory_gb=2))
    assert setup.num_env_actors(asked, 100) == 3
    assert setup.num_env_actors(asked, 2) == 2
    assert setup.num_env_actors(asked.model_copy(update={"num_parallel": 2}), 100) == 2
    joined = asked.model_copy(update={"ray": RayConfig(address="auto")})
    assert setup.num_env_actors(joined, 100) == 10
    with pytest.raises(BadInputError, match=r"lower env\.memory_gb"):
        setup.num_env_actors(asked.model_copy(update={"env": EnvConfig(memory_gb=8)}), 100)


def test_renderers_stay_one_a_core_where_ray_has_room_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_nodes", lambda: [{"CPU": 44.0, "memory": 400.0 * _GIB}])
    monkeypatch.setattr(setup, "cores", lambda: 16)
    auto, given = Config(), Config(num_parallel=30)
    assert (setup.num_env_actors(auto, 100), setup.num_renderers(auto, 100)) == (44, 16)
    assert setup.num_renderers(auto, 3) == 3
    assert setup.num_renderers(given, 100) == 30
    joined = Config(ray=RayConfig(address="auto"))
    assert setup.num_renderers(joined, 100) == 44


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
