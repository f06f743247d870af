"""Malformed input of every kind: exit code 2 and one line, never a traceback or a hang, and nothing written."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.faults.malformed import check_refused
from wpray.benchmarks.libero.suites import canonical
from wpray.cli.configuration import field_names, read_config
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.results.parts import read_part
from wpray.results.writer import RunFolder, safe_name

KINDS = {"config", "task name", "statistics", "safetensors", "part", "run.json"}
FED = Counter[str]()  # malformed inputs by kind
FUZZ = settings(
    max_examples=100,
    deadline=5000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a folder for input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return tmp_path


def _refused(kind: str, place: Path, act: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs `act` as a command does."""
    check_refused(place, lambda _: int(act() is None), capsys)
    FED[kind] += 1


def _valid(data: Any) -> bool:
    try:
        read_config(["--config", str(data)])
    except BadInputError:
        return False
    return True


@FUZZ
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_configs_that_are_no_yaml(raw: bytes, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "in" / "config.yaml"
    path.write_bytes(raw)
    assume(not _valid(path))
    _refused("config", place, lambda: read_config(["--config", str(path)]), capsys)


@FUZZ
@given(
    name=st.sampled_from([*field_names(), "env", "ray", "retry"]) | st.text(min_size=1, max_size=12),
    value=st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_configs_with_wrong_fields(name: str, value: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "in" / "config.yaml"
    path.write_text(yaml.safe_dump({name: value}), encoding="utf-8")
    assume(not _valid(path))
    _refused("config", place, lambda: read_config(["--config", str(path)]), capsys)


def test_a_small_file_that_means_a_huge_value(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "in" / "config.yaml"
    levels = "".join(f"  - &l{n + 1} [{', '.join([f'*l{n}'] * 9)}]\n" for n in range(12))
    path.write_text(f"seed:\n  - &l0 [x, x, x, x, x, x, x, x, x]\n{levels}")
    _refused("config", place, lambda: read_config(["--config", str(path)]), capsys)
    path.write_text('"\\n\\e[2J": 1')
    _refused("config", place, lambda: read_config(["--config", str(path)]), capsys)
    path.write_text(f"seed: 0x{'f' * 10_000}")
    _refused("config", place, lambda: read_config(["--config", str(path)]), capsys)


@FUZZ
@given(name=st.text(min_size=1, max_size=120))
def test_names_cannot_leave_the_output_folder(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(place / "out")
    for path in (folder.part_path((name, 0, 0)), folder.trajectory_path((name, 0, 0)), folder.path / safe_name(name)):
        assert path.resolve().is_relative_to(folder.path.resolve()) and path.resolve() != folder.path.resolve()
    understood = canonical(name)  # which understands hyphens and spaces between words
    assume(not understood.replace("_", "a").isalnum() or not understood.isascii())
    _refused("task name", place, lambda: read_config([f"--task_suite={name}"]), capsys)


def _statistics() -> dict[str, Any]:
    fields = {"mean": 0.0, "std": 1.0, "q01": -1.0, "q99": 1.0, "min": -2.0, "max": 2.0}
    return {
        field: {name: [value] * size for name, value in fields.items()}
        for field, size in (("action", 7), ("proprio", 8))
    }


@FUZZ
@given(data=st.data())
def test_statistics_files(data: st.DataObject, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wpray.policies.waypoint_vla.statistics import load_scaling

    path = place / "in" / "dataset_statistics.json"
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(JSON)), encoding="utf-8")
    else:
        whole = _statistics()
        field, name = data.draw(st.sampled_from(["action", "proprio"])), data.draw(st.sampled_from(["q01", "q99"]))
        whole[field][name] = data.draw(JSON)
        text = json.dumps(whole)
        path.write_text(data.draw(st.sampled_from([text, text[: len(text) // 2], text + "}"])), encoding="utf-8")
    _refused("statistics", place, lambda: load_scaling(path, "q99", "libero_object"), capsys)


@FUZZ
@given(data=st.data())
def test_safetensors_headers(data: st.DataObject, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = pytest.importorskip("wpray.models.checkpoint", exc_type=ImportError)
    path = place / "in" / "model.safetensors"
    entry = {"dtype": data.draw(st.sampled_from(["F32", "BF16", "I64", "F99"])), "shape": [2], "data_offsets": [0, 8]}
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON)
    header = json.dumps(data.draw(st.just({"a": entry}) | JSON)).encode("utf-8", "surrogatepass")
    header = data.draw(st.just(header) | st.just(b"[" * 10_000))
    length = data.draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
    path.write_bytes(struct.pack("<Q", length)[: data.draw(st.integers(0, 8) | st.just(8))] + header + bytes(8))
    read = data.draw(st.sampled_from([checkpoint.open_vlm, checkpoint.open_action_expert]))
    _refused("safetensors", place, lambda: read(place / "in"), capsys)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound part, with its trajectory's steps left out."""
    from datetime import UTC, datetime

    from wpray.benchmarks.fake.environment import fake_tasks
    from wpray.results.encode import EpisodeContext, encode_error
    from wpray.types import Failure, Trial

    now = datetime(2026, 1, 2, tzinfo=UTC)
    context = EpisodeContext("run", "random", None, "wpray", None, None, 1, now, now)
    return encode_error(Trial(fake_tasks()[0], 0, 0), context, Failure("environment", "E", "message")).part


def _read(part: bytes, folders: pytest.TempPathFactory) -> pa.Table:
    path = folders.mktemp("whole") / "part.parquet"
    path.write_bytes(part)
    return read_part(path)


@FUZZ
@given(data=st.data())
def test_parts_are_set_aside(data: st.DataObject, part: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A damaged part is never an outcome, and is kept under another name; if no value of it is, it stays as it is."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    path = folder.part_path(("fake", 0, 0))
    path.parent.mkdir(parents=True)
    damaged = bytearray(part)
    how = data.draw(st.sampled_from(["cut", "bits", "noise", "elsewhere"]))
    if how == "cut":
        damaged = damaged[: data.draw(st.integers(0, len(part) - 1))]
    elif how == "bits":
        for _ in range(data.draw(st.integers(1, 20))):
            damaged[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "noise":
        damaged = bytearray(data.draw(st.binary(max_size=200)))
    else:
        path = folder.part_path(("fake", 0, 1))
    assume(bytes(damaged) != part or how == "elsewhere")
    path.write_bytes(damaged)
    assert folder.finished() == {}
    if path.exists():
        found, whole = read_part(path), _read(part, tmp_path_factory)
        assert how == "bits" and found.drop_columns("part_digest").equals(whole.drop_columns("part_digest"))
    outside = [name for name in folder.path.rglob("*") if name.is_file() and name.parent != path.parent]
    assert outside == []
    FED["part"] += 1


@pytest.fixture(scope="module", autouse=True)
def _at_least_600() -> Iterator[None]:
    yield
    assert FED.keys() <= KINDS, "a kind that is not counted below"
    if FED.keys() == KINDS:  # else a part of this file was asked for
        assert sum(FED.values()) >= 600, FED


def test_run_descriptions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run.json that is not one: the folder is refused and not touched."""
    from wpray.run.output import choose_folder, opened

    run = place / "run"
    run.mkdir()
    config = Config(output_dir=str(run))

    def enter() -> None:
        with opened(choose_folder(config), config):
            pass

    samples: Sequence[bytes] = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"run_id": 3}', b"[" * 10_000)
    for raw in samples:
        (run / "run.json").write_bytes(raw)
        _refused("run.json", place, enter, capsys)
