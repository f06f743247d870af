"""`ray.num_env_actors: auto` on one machine: more environments than cores only where they wait for the policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpray.config import Config
from wpray.config.groups import EnvConfig, RayConfig
from wpray.policies import environments
from wpray.policies.base import PolicySpec
from wpray.policies.environments import Host, suited
from wpray.system import gpus

_GIB = 2**30
CONFIG = Config(env=EnvConfig(memory_gb=2))
CPU = PolicySpec("quick", True, False, num_gpus=0, max_batch_size=32)
GPU = PolicySpec("vla", True, False, num_gpus=1, max_batch_size=32)
SERVERS = PolicySpec("asks", True, False, num_gpus=0, max_batch_size=1, kind="chunk", remote=True, servers=40)
H200 = Host(16, 400 * _GIB, 1, 139 * _GIB)


def test_a_gpu_takes_the_number_that_was_measured_to_be_best() -> None:
    assert str(suited(CONFIG, GPU, H200)) == "56 on 16 cores, because they wait for the answers of policy vla"
    assert suited(CONFIG, GPU, Host(32, 400 * _GIB, 2, 139 * _GIB)).number == 112
    assert suited(CONFIG.model_copy(update={"num_parallel": 5}), GPU, H200).number == 56, "whatever is configured"


def test_a_policy_on_the_cores_takes_one_each() -> None:
    assert str(suited(CONFIG, CPU, H200)) == "16 on 16 cores, because policy quick computes on the cores, too"
    assert suited(CONFIG, GPU, Host(16, 400 * _GIB)).number == 16, "without a GPU, the CPU computes"
    on_it = CONFIG.model_copy(update={"ray": RayConfig(policy_resources={"GPU": 0.5})})
    assert suited(on_it, CPU, H200).number == 56


def test_requests_beyond_two_batches_are_not_waited_for() -> None:
    small = PolicySpec("small", True, False, num_gpus=1, max_batch_size=10)
    found = suited(CONFIG, small, H200)
    assert (found.number, found.because) == (20, "policy small answers at most 10 at once")
    assert suited(CONFIG, GPU, Host(64, 400 * _GIB, 1, 139 * _GIB)).number == 64
    two = CONFIG.model_copy(update={"ray": RayConfig(num_policy_actors=2)})
    assert suited(two, small, Host(16, 400 * _GIB, 2, 139 * _GIB)).number == 40


def test_servers_are_waited_for_as_many_as_answer() -> None:
    assert suited(CONFIG, SERVERS, Host(16)).number == 56
    one = PolicySpec("one", True, False, num_gpus=0, max_batch_size=1, kind="chunk", remote=True, servers=1)
    assert suited(CONFIG, one, Host(16)).number == 16


@pytest.mark.parametrize(
    ("host", "number", "because"),
    [
        (Host(16, 60 * _GIB, 1, 139 * _GIB), 30, "memory holds no more"),
        (Host(16, 8 * _GIB, 1, 139 * _GIB), 4, "memory holds no more"),
        (Host(16, 400 * _GIB, 1, 50 * _GIB), 20, "GPU memory holds no more"),
        (Host(16, 400 * _GIB, 1, 24 * _GIB), 16, "GPU memory holds no more"),
        (Host(16, 400 * _GIB, 1, None), 56, "they wait for the answers of policy vla"),
    ],
)
def test_memory_of_the_machine_and_of_its_gpu_are_limits(host: Host, number: int, because: str) -> None:
    found = suited(CONFIG, GPU, host)
    assert (found.number, found.because) == (number, because)


def test_cpus_that_are_reserved_decide_as_they_did() -> None:
    reserving = CONFIG.model_copy(update={"ray": RayConfig(env_cpus=0.5)})
    found = [suited(reserving, spec, H200) for spec in (GPU, CPU, SERVERS)]
    assert {(one.number, one.because) for one in found} == {(32, "ray.env_cpus reserves 0.5 for each")}


def test_the_fullest_gpu_counts_only_where_environments_wait_and_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def free() -> dict[str, float]:
        asked.append("nvidia-smi")
        return {"GPU 0 (a)": 9.0, "GPU 1 (b)": 5.0}

    monkeypatch.setattr(environments, "num_gpus", lambda: 2)
    monkeypatch.setattr(environments, "free_gpu_memory", free)
    assert Host.here(CONFIG, GPU).gpu_memory == Host.here(CONFIG, SERVERS).gpu_memory == 5
    assert len(asked) == 2
    osmesa = CONFIG.model_copy(update={"env": EnvConfig(renderer="osmesa")})
    fake = CONFIG.model_copy(update={"task_suite": "fake"})
    found = [Host.here(CONFIG, CPU), Host.here(osmesa, GPU), Host.here(fake, GPU)]
    assert [(host.gpus, host.gpu_memory) for host in found] == [(2, None)] * 3 and len(asked) == 2
    monkeypatch.setattr(environments, "free_gpu_memory", dict)
    assert Host.here(CONFIG, GPU).gpu_memory == 0, "a GPU that nothing is said of has room for none"


@pytest.mark.parametrize(
    ("spec", "host", "most"),
    [
        (GPU, Host(16, 400 * _GIB, 1, 139 * _GIB), 64),  # two batches of 32
        (GPU, Host(8, 400 * _GIB, 1, 139 * _GIB), 56),  # twice those that it begins with
        (GPU, Host(16, 100 * _GIB, 1, 139 * _GIB), 50),  # memory
        (GPU, Host(16, 400 * _GIB, 1, 65 * _GIB), 50),  # of the GPU
        (GPU, Host(16, None, 1, 139 * _GIB), 56),  # nothing is known of memory
        (CPU, Host(16, 400 * _GIB), 32),
        (CPU, H200, 16),  # nothing is known of the GPU's memory, on which they draw
        (SERVERS, Host(16, 400 * _GIB), 80),
    ],
)
def test_a_run_may_grow_to_what_memory_and_the_policy_allow(spec: PolicySpec, host: Host, most: int) -> None:
    found = suited(CONFIG, spec, host)
    assert (found.most, found.places) == (most, 40 if spec is SERVERS else 32)
    reserving = CONFIG.model_copy(update={"ray": RayConfig(env_cpus=0.5)})
    assert suited(reserving, spec, host).most == suited(reserving, spec, host).number


@given(cores=st.integers(1, 512), count=st.integers(0, 8), batch=st.integers(1, 256), free=st.integers(0, 200))
def test_a_policy_that_is_waited_for_never_takes_fewer_than_one_a_core(
    cores: int, count: int, batch: int, free: int
) -> None:
    spec = PolicySpec("any", True, False, num_gpus=1, max_batch_size=batch)
    found = suited(CONFIG, spec, Host(cores, None, count, free * _GIB))
    assert cores <= found.number <= 3.5 * cores


def test_gpus_that_are_hidden_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_PRESENT", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.num_gpus() == 0
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert gpus.num_gpus() == 2
    for hidden, left in (("1", 1), ("", 0), ("0,1,2", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpus.num_gpus() == left
