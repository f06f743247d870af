"""The four problems that everybody met who followed the manual runbook: each is provoked, then shown to be solved."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.machines import with_official_libero, without_osmesa
from wpray.benchmarks.libero import tasks
from wpray.errors import BadInputError

_TASK = "libero_object"


def run(code: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


@pytest.mark.libero
def test_without_an_opengl_library_launch_says_what_to_install(tmp_path: Path) -> None:
    environ = without_osmesa(tmp_path)
    plain = run(["-c", "import mujoco; mujoco.GLContext(8, 8)"], environ | {"MUJOCO_GL": "osmesa"})
    assert "glGetError" in plain.stderr  # what people used to see
    ours = run(["-m", "wpray.launch", "--env.renderer", "osmesa", "--output_dir", str(tmp_path / "r")], environ)
    assert ours.returncode == 2
    assert ours.stderr.count("\n") == 1
    assert "apt-get install -y libosmesa6" in ours.stderr
    assert not (tmp_path / "r").exists()


def test_libero_is_imported_without_a_terminal_and_without_a_config(tmp_path: Path) -> None:
    environ = with_official_libero(tmp_path)
    plain = run(["-c", "import libero.libero"], environ)
    assert "EOFError" in plain.stderr
    ours = run(
        [
            "-c",
            "from wpray.benchmarks.libero.imports import load; "
            "print(load('libero.libero').get_libero_path('bddl_files'))",
        ],
        environ | {"MUJOCO_GL": "osmesa"},
    )
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout.strip() == str(tmp_path / "libero" / "libero" / "bddl_files")
    assert not (tmp_path / "home" / ".libero" / "config.yaml").exists()  # what other tools ask stays theirs


@pytest.mark.libero
def test_a_foreign_libero_config_does_not_redirect_the_installed_package(tmp_path: Path) -> None:
    foreign = tmp_path / ".libero"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("{assets: /elsewhere, bddl_files: /elsewhere, init_states: /elsewhere}")
    code = "from wpray.benchmarks.libero.imports import load; print(load('libero.libero').get_libero_path('assets'))"
    environ = without_osmesa(tmp_path) | {"HOME": str(tmp_path), "MUJOCO_GL": "osmesa"}
    for extra in ({}, {"LIBERO_CONFIG_PATH": str(foreign)}):
        found = run(["-c", code], environ | extra)
        assert found.returncode == 0, found.stderr
        assert Path(found.stdout.strip()).is_dir()


def test_a_vlm_checkpoint_of_the_nested_layout_is_the_same_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors import safe_open

    from tests.tiny_weights import write_checkpoints
    from wpray.models.checkpoint import open_vlm

    write_checkpoints(tmp_path)
    with safe_open(tmp_path / "vlm_nested" / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("paligemma_with_expert.paligemma.") for name in file.keys())  # noqa: SIM118
    (plain, size), (nested, nested_size) = (open_vlm(tmp_path / name) for name in ("vlm", "vlm_nested"))
    assert size == nested_size
    device = torch.device("cpu")
    ours = dict(nested.tensors(device, "float32"))
    for name, tensor in plain.tensors(device, "float32"):
        assert torch.equal(ours.pop(name), tensor)
    assert not ours
    assert torch.equal(nested.table("float32").take([3]), plain.table("float32").take([3]))


def test_initial_states_in_a_torch_pickle_load_under_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("libero")
    states = np.random.default_rng(0).standard_normal((50, 92))
    path = tmp_path / "task.pruned_init"
    torch.save(states, path)  # as the official package stores them
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        torch.load(path, weights_only=True)
    monkeypatch.setattr(tasks, "_states_file", lambda _: path)
    assert np.array_equal(tasks.initial_states(_TASK, 0), states)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/wpray-was-here"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("libero")
    path = tmp_path / "task.pruned_init"
    torch.save(_Evil(), path)
    monkeypatch.setattr(tasks, "_states_file", lambda _: path)
    with pytest.raises(BadInputError, match="not a plain array"):
        tasks.initial_states(_TASK, 0)
    assert not Path("/tmp/wpray-was-here").exists()
