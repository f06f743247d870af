"""A digest names content, wherever it lies, and reads no more than it must."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from wpray.provenance import file_digests
from wpray.provenance.file_digests import RecordEntry, folder_digest
from wpray.system.packages import files_below

_OLD = 1_600_000_000  # seconds; files of this time have settled


def _folder(root: Path, **contents: str) -> Path:
    for name, content in contents.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was read."""
    names: list[str] = []
    plain = file_digests._sha256

    def counted(path: str) -> str:
        names.append(os.path.basename(path))
        return plain(path)

    monkeypatch.setattr(file_digests, "_sha256", counted)
    monkeypatch.setattr(file_digests, "_SETTLED_S", -1.0)
    return names


def _digest(root: Path, recorded: dict[str, RecordEntry] | None = None, cache: Path | None = None) -> str:
    return folder_digest(dict(files_below(root)), recorded or {}, cache).digest


def test_the_same_files_elsewhere_have_the_same_digest(tmp_path: Path) -> None:
    one = _folder(tmp_path / "one", task_bddl="goal", deep__mesh_obj="v 1", __init___py="")
    two = _folder(tmp_path / "two", task_bddl="goal", deep__mesh_obj="v 1", __pycache____a_pyc="x")
    assert _digest(one) == _digest(two)
    (two / "task.bddl").write_text("gaol")  # of the same size
    assert _digest(one) != _digest(two)


def test_a_file_of_another_name_is_another_folder(tmp_path: Path) -> None:
    assert _digest(_folder(tmp_path / "one", a_bddl="x")) != _digest(_folder(tmp_path / "two", b_bddl="x"))


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, read: list[str]) -> None:
    root, cache = _folder(tmp_path / "root", a_bddl="one", b_bddl="two"), tmp_path / "cache" / "x.json"
    first = _digest(root, cache=cache)
    assert sorted(read) == ["a.bddl", "b.bddl"]
    assert _digest(root, cache=cache) == first and len(read) == 2
    before = (root / "a.bddl").stat()
    (root / "a.bddl").write_text("eno")
    os.utime(root / "a.bddl", ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` does
    assert _digest(root, cache=cache) != first and read[2:] == ["a.bddl"]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    root, cache = _folder(tmp_path / "root", a_bddl="one"), tmp_path / "x.json"
    _digest(root, cache=cache)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"x": 1}', "[" * 100_000])
def test_a_damaged_cache_is_no_cache(tmp_path: Path, content: str) -> None:
    root, cache = _folder(tmp_path / "root", a_bddl="one"), tmp_path / "x.json"
    cache.write_text(content)
    assert _digest(root, cache=cache) == _digest(root)


def test_a_folder_that_cannot_hold_a_cache_is_no_obstacle(tmp_path: Path, read: list[str]) -> None:
    root = _folder(tmp_path / "root", a_bddl="one")
    assert _digest(root, cache=Path("/proc/none/x.json")) == _digest(root)


def test_large_files_of_an_intact_installation_are_not_read(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_SMALL", 4)
    root = _folder(tmp_path / "root", small_bddl="goal", mesh_obj="vertices")
    os.utime(root / "mesh.obj", (_OLD, _OLD))
    recorded = {
        str(path): RecordEntry(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), _OLD * 10**9)
        for path in root.iterdir()
    }
    found = folder_digest(dict(files_below(root)), recorded, None)
    assert read == ["small.bddl"] and found.changed == ()
    assert found.digest == _digest(root)  # as if it had been read
    (root / "mesh.obj").write_text("vortices")  # newer than the installation
    changed = folder_digest(dict(files_below(root)), recorded, None)
    assert changed.digest != found.digest and changed.changed == ("mesh.obj",)


def test_compiled_libraries_count_unless_they_are_as_installed(tmp_path: Path) -> None:
    root = _folder(tmp_path / "root", a_py="x", lib_so="machine code")
    path = root / "lib.so"
    recorded = {str(path): RecordEntry(12, hashlib.sha256(path.read_bytes()).hexdigest(), 2**62)}
    without = folder_digest(dict(files_below(root)), recorded, None).digest
    assert without == _digest(_folder(tmp_path / "other", a_py="x")) != _digest(root)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = _folder(tmp_path / "root", deep__a_bddl="x")
    (root / "deep" / "up").symlink_to(root)
    (root / "lost").symlink_to("nowhere")
    assert [name for name, _ in files_below(root) if name != "lost"] == ["deep/a.bddl"]
    assert _digest(root)
