"""The cache of compiled models: the bits of a compiled one, and nothing that is damaged, foreign or out of date."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import pytest

from wpray.benchmarks.libero import compiled_models, compiling, tasks
from wpray.benchmarks.libero.compiled_models import ModelCache, Source, compiled, named_files
from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.system import private_folder
from wpray.types import ImageSpec, ObservationSpec, Trial

_TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wpray" / "models"


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    path = tmp_path / "shape.obj"
    path.write_text(_TETRAHEDRON)
    return path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the XML of every model that is compiled."""
    seen: list[str] = []
    stock = compiled_models._compile

    def compile_and_note(xml: str) -> mujoco.MjModel:
        seen.append(xml)
        return stock(xml)

    monkeypatch.setattr(compiled_models, "_compile", compile_and_note)
    return seen


def _xml(mesh: Path, size: float = 0.1) -> str:
    return f"""<mujoco><asset><mesh name="m" file="{mesh}"/>
        <texture name="t" type="2d" builtin="checker" width="8" height="8" rgb1="1 0 0"/>
        <material name="p" texture="t"/></asset><worldbody><body>
        <freejoint/><geom type="mesh" mesh="m" material="p"/></body>
        <geom type="box" size="{size} 1 1"/></worldbody></mujoco>"""


def _key(xml: str) -> str:
    source = Source.read(xml)
    assert source is not None
    return source.key


def _bytes(model: mujoco.MjModel) -> bytes:
    data = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, data)
    return data.tobytes()


def _assert_same(one: mujoco.MjModel, other: mujoco.MjModel) -> None:
    assert _bytes(one) == _bytes(other)
    names = [name for name in dir(one) if isinstance(getattr(one, name, None), np.ndarray)]
    assert len(names) > 300
    for name in names:
        assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True), name
    numbers = [name for name in dir(one) if name[0] != "_" and isinstance(getattr(one, name, None), int | float)]
    assert len(numbers) > 50 and {name for name in numbers if getattr(one, name) != getattr(other, name)} <= {
        "signature"
    }


def _entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*"))


def test_a_model_is_compiled_once_and_has_the_same_bits_from_the_cache(
    mesh: Path, cache: Path, compilations: list[str]
) -> None:
    first, second = compiled(_xml(mesh)), compiled(_xml(mesh))
    assert len(compilations) == len(_entries(cache)) == 1
    _assert_same(first, second)
    _assert_same(mujoco.MjModel.from_xml_string(_xml(mesh)), second)


def _swap(mesh: Path) -> None:
    """Give the file another content of the same size and time."""
    stat = mesh.stat()
    mesh.write_text(_TETRAHEDRON.replace("v 1 0 0", "v 2 0 0"))
    os.utime(mesh, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_another_content_of_a_file_is_another_model_whatever_its_size_and_time(mesh: Path) -> None:
    before = _key(_xml(mesh))
    _swap(mesh)
    assert _key(_xml(mesh)) != before


def test_what_mujoco_may_have_compiled_from_its_memory_of_a_file_is_not_kept(
    mesh: Path, cache: Path, compilations: list[str]
) -> None:
    compiled(_xml(mesh))
    (entry,) = _entries(cache)
    _swap(mesh)
    compiled(_xml(mesh))
    assert len(compilations) == 2 and _entries(cache) == [entry]


def test_the_key_covers_xml_mujoco_processor_and_format(mesh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {_key(_xml(mesh)), _key(_xml(mesh, size=0.2))}
    for target, name, value in (
        (mujoco, "__version__", "9.9"),
        (compiled_models, "_FORMAT", 0),
        (compiled_models, "_processor", lambda: "another"),
        (compiled_models, "_libraries", lambda: ("another build",)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            keys.add(_key(_xml(mesh)))
    assert len(keys) == 6


@pytest.mark.parametrize(
    "text",
    [
        '<mujoco><include file="/other.xml"/></mujoco>',
        '<mujoco><asset><model name="a" file="/other.xml"/></asset></mujoco>',
        '<mujoco><compiler strippath="true"/><asset><mesh file="/a.obj"/></asset></mujoco>',
        '<mujoco><asset><mesh file="relative.obj"/></asset></mujoco>',
        '<mujoco><asset><thing file="/a.obj"/></asset></mujoco>',
        '<mujoco><extension><plugin plugin="mujoco.sdf.nut"/></extension></mujoco>',
    ],
)
def test_a_model_that_may_depend_on_more_is_not_kept(text: str) -> None:
    assert named_files(text) is None and Source.read(text) is None


def test_every_file_of_a_texture_counts() -> None:
    text = '<mujoco><asset><texture fileright="/r.png" fileleft="/l.png"/><skin file="/s.skn"/></asset></mujoco>'
    assert named_files(text) == ["/r.png", "/l.png", "/s.skn"]


def test_a_missing_file_is_mujocos_error(mesh: Path, cache: Path) -> None:
    mesh.unlink()
    with pytest.raises(ValueError, match=r"shape\.obj"):
        compiled(_xml(mesh))
    assert not _entries(cache)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _open_to_others(path: Path) -> None:
    path.chmod(0o666)


def _link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("damage", [_truncate, _flip, _open_to_others, _link])
def test_an_entry_that_is_damaged_or_not_ones_own_is_written_again(
    mesh: Path, cache: Path, compilations: list[str], damage: Callable[[Path], None]
) -> None:
    good = compiled(_xml(mesh))
    (entry,) = _entries(cache)
    content = entry.read_bytes()
    damage(entry)
    _assert_same(good, compiled(_xml(mesh)))
    assert len(compilations) == 2 and _entries(cache) == [entry]
    assert entry.read_bytes() == content and not entry.is_symlink() and entry.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_may_write_to_is_not_used(mesh: Path, cache: Path, compilations: list[str]) -> None:
    compiled(_xml(mesh))
    cache.chmod(0o777)
    compiled(_xml(mesh))
    assert len(compilations) == 2


def test_a_folder_of_another_user_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ModelCache(cache).is_private()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not ModelCache(cache).is_private()


def test_a_home_that_cannot_be_written_costs_only_time(
    mesh: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.write_text("a file is in the folder's place")
    assert compiled(_xml(mesh)).nmesh == 1


def test_a_full_disk_costs_only_time(mesh: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert compiled(_xml(mesh)).nmesh == 1
    assert not _entries(cache), "the half-written file is gone"


def test_the_last_gigabyte_of_a_disk_is_left_alone(mesh: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_models, "_KEPT_FREE", 2**62)
    compiled(_xml(mesh))
    assert not _entries(cache)


def test_a_file_that_changes_while_its_model_compiles_leaves_no_entry(
    mesh: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_while_it_changes(xml: str) -> mujoco.MjModel:
        mesh.write_text(_TETRAHEDRON.replace("v 1 0 0", "v 3 0 0"))
        return mujoco.MjModel.from_xml_string(xml)

    monkeypatch.setattr(compiled_models, "_compile", compile_while_it_changes)
    compiled(_xml(mesh))
    assert not _entries(cache)


def test_beyond_the_limit_those_that_nobody_used_for_longest_go(mesh: Path, cache: Path) -> None:
    models = [compiled(_xml(mesh, size)) for size in (0.1, 0.2, 0.3)]
    for age, size in ((30, 0.2), (20, 0.1), (10, 0.3)):
        key = _key(_xml(mesh, size))
        (path,) = cache.glob(f"{key}.*")
        os.utime(path, ns=(0, path.stat().st_mtime_ns - age * 10**9))
    small = ModelCache(cache, limit=3 * max(path.stat().st_size for path in _entries(cache)))
    kept = [_key(_xml(mesh, size)) for size in (0.1, 0.3)]
    small.save("new", models[0])
    assert sorted(path.name.split(".")[0] for path in _entries(cache)) == sorted(["new", *kept])


def test_a_half_written_file_of_a_killed_process_is_removed_once_it_is_old(mesh: Path, cache: Path) -> None:
    compiled(_xml(mesh))
    (cache / "old.tmp").touch()
    (cache / "young.tmp").touch()
    os.utime(cache / "old.tmp", (0, 0))
    compiled(_xml(mesh, size=0.2))
    assert [path.name for path in cache.glob("*.tmp")] == ["young.tmp"]


def test_processes_that_start_together_compile_once(
    mesh: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[str]
) -> None:
    monkeypatch.setattr(private_folder, "path_under", lambda: tmp_path)  # where the lock is
    found: list[mujoco.MjModel] = []
    threads = [threading.Thread(target=lambda: found.append(compiled(_xml(mesh)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compilations) == 1 and len(found) == 6
    assert all(_bytes(model) == _bytes(found[0]) for model in found)


def test_a_process_that_hangs_holds_nobody_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_folder, "path_under", lambda: tmp_path)
    monkeypatch.setattr(compiling, "_LONGEST_S", 0.1)
    with compiling.one_at_a_time("model"), compiling.one_at_a_time("model"):
        pass


def test_those_who_waited_for_the_first_one_read_its_cache_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_folder, "path_under", lambda: tmp_path)
    inside, together = threading.Semaphore(0), threading.Barrier(3, timeout=30)

    def read() -> None:
        with compiling.first_one_alone("controller"):
            inside.release()
            together.wait()

    readers = [threading.Thread(target=read) for _ in range(2)]
    with compiling.first_one_alone("controller"):
        for reader in readers:
            reader.start()
        assert not inside.acquire(timeout=0.2), "the first one compiles alone"
    together.wait()
    for reader in readers:
        reader.join()
    assert inside.acquire(blocking=False) and inside.acquire(blocking=False)


@pytest.mark.libero
def test_an_environment_from_the_cache_is_the_same_to_the_bit(cache: Path, compilations: list[str]) -> None:
    """Compare model, steps and pixels of a task with a stove, whose colours and pose change."""
    task = tasks.list_tasks("libero_10")[8]
    spec = ObservationSpec({"base": ImageSpec(256, 256, rotated=False)}, ("eef_pos", "gripper_qpos"))

    def episode() -> tuple[bytes, list[np.ndarray]]:
        np.random.seed(0)  # from which creation draws the first poses of the fixtures
        environment = LiberoEnvironment()
        environment.load(task)
        model = _bytes(environment._loaded().model)
        environment.reset(Trial(task, 3, seed=7))
        seen = []
        for number in range(12):
            environment.step(np.sin(np.arange(7) + number))
            seen += list(environment.state().values())
        seen.append(environment.observe(spec).images["base"])
        environment.close()
        return model, seen

    from_xml, from_cache = episode(), episode()
    assert len(compilations) == len(_entries(cache)) == 1
    assert from_xml[0] == from_cache[0]
    assert all(np.array_equal(a, b) for a, b in zip(from_xml[1], from_cache[1], strict=True))
