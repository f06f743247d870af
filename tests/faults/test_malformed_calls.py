"""Malformed calls of every command, as a person or a script makes them: exit code 2 and one line, nothing written."""

from __future__ import annotations

import itertools
import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.malformed import check_refused
from wpray.cli.configuration import field_names
from wpray.config import Config, path_fields

libero = pytest.mark.libero
FAKE = ("--task_suite", "fake", "--policy", "noop")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an unfinished run, a file, a folder, a pipe and broken runs, where nothing may start."""
    monkeypatch.chdir(tmp_path)
    for name in ("EMPTY", "UNSET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMPTY", "")
    for called in ("ray.init", "multiprocessing.process.BaseProcess.start"):
        monkeypatch.setattr(called, _forbidden)
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, text in BROKEN_RUNS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(text)
    return tmp_path


def _forbidden(*_: object, **__: object) -> None:
    raise AssertionError("something was started")


BROKEN_RUNS = {"empty_info": b"", "half_info": b'{"run_id": "x', "list_info": b"[]", "binary_info": b"\xff\xfe\0"}
NO_RUNS = ("", "nowhere", "file", "folder", "pipe", "$UNSET/run", "~nobody-of-this-name/run", "a\0b", *BROKEN_RUNS)


def _takes_any_text(name: str) -> bool:
    """Whether a setting's value is a name that only the run can judge."""
    model: Any = Config
    for part in name.split(".")[:-1]:
        model = model.model_fields[part].annotation
    kind = model.model_fields[name.rpartition(".")[2]].annotation
    parts = typing.get_args(kind)
    return list[str] in parts or str in (kind, *(getattr(part, "__origin__", part) for part in parts))


def _settings() -> Iterator[tuple[str, ...]]:
    """Every setting that is not a name, with what it cannot be."""
    for name, value in itertools.product(field_names(), ("\u2603", "1e999", "-0.5")):
        if not _takes_any_text(name):
            yield ("launch", *FAKE, f"--{name}={value}")


def _paths() -> Iterator[tuple[str, ...]]:
    """Every path, with what none can be."""
    values = ("$UNSET/x", "$EMPTY/x", "${HOME", "${A:-b}", "~nobody-of-this-name", "a\\0b", "a\nb", "a\udcff")
    for name, value in itertools.product((*path_fields(), "config"), (*values, "x" * 256, "a/" * 2100, "pipe")):
        yield ("launch", *FAKE, f"--{name}", value)


CALLS: list[tuple[str, ...]] = [
    ("launch", "stray"),
    ("launch", "--config", ""),
    ("launch", "--config", "nowhere"),
    ("launch", "--config", "folder"),
    ("launch", "--config", "file"),
    ("launch", "--config", "/dev/zero"),
    ("launch", "--config"),
    ("launch", *FAKE, "--ray", "{}", "--ray.env_cpus", "1"),
    ("launch", *FAKE, "--video", "{", "--seed", "1"),
    ("launch", *FAKE, "--seed", "9" * 5000),
    ("launch", *FAKE, "--tasks", "0-"),
    ("launch", *FAKE, "--tasks", "10"),
    ("launch", *FAKE, "--tasks", "1" * 30),
    ("launch", *FAKE, "--num_parallel", "100000"),
    ("launch", *FAKE, "--num_trials_per_task", "201"),
    ("launch", *FAKE, "--env.max_steps", str(10**30)),
    ("launch", *FAKE, "--output_dir", "file"),
    ("launch", *FAKE, "--output_dir", "file/below"),
    ("launch", *FAKE, "--output_dir", ""),
    ("launch", *FAKE, "--output_dir", "file:///a%00b"),
    ("launch", *FAKE, "--output_dir", "s3:/bucket"),
    ("launch", *FAKE, "--output_dir", "s3://key:secret@bucket/x"),
    ("launch", *FAKE, "--video_out_path", "file"),
    ("launch", *FAKE, "--video_out_path", "s3://bucket/videos"),
    ("launch", *FAKE, "--policy", "nop"),
    ("launch", *FAKE, "--policy", "a..b"),
    ("launch", *FAKE, "--policy", "no_package.mine"),
    ("launch", *FAKE, "--policy", "wpray.errors"),
    ("launch", *FAKE, "--ray.submit", "head:8265"),
    ("launch", *FAKE, "--ray.submit", "http://head:8265", "--ray.address", "ray://head:10001"),
    ("launch", *FAKE, "--ray.job", "x"),
    ("launch", *FAKE, "--stop_when.reference_rate", "0.4", "--stop_when.difference", "0.7"),
    ("launch", *FAKE, "--retry.stall_s", "0.001"),
    ("launch", *FAKE, "--plan", "--tasks", "11"),
    ("launch", "--policy", "waypoint_vla"),
    ("launch", "--task_suite", "fak\u00e9"),
    ("launch", "--task_suite", "a b"),
    ("launch", "--task_suite", "libero_goal,,libero_10"),
    ("launch", "--task_suite", "libero_goal,fake"),
    ("launch", "--task_suite", "libero_pro:env"),
    ("launch", "--task_suite", "libero_pro:"),
    ("launch", "--task_suite", "[]"),
    ("launch", *FAKE, "--tasks", ":0"),
    ("launch", *FAKE, "--tasks", "fake:"),
    ("launch", *FAKE, "--tasks", "libero_goal:0"),
    ("launch", *FAKE, "--tasks", "fake:11"),
    ("sweep.__main__", *FAKE),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "nowhere/*"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "$UNSET/*", "b"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a\0b", "b"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a", "b", "--output_dir", "file"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a", "b", "--output_dir", "half_info"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a", "b", "--race", "x"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a", "b", "--race", "2"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a", "b", "--watch", "soon"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a", "b", "--resume", "only"),
    ("sweep.__main__", *FAKE, "--vlm_checkpoint", "a", "b", "--tasks", "11"),
    ("__main__",),
    ("__main__", "nosuch"),
    ("__main__", "launch", "--nosuch", "1"),
    ("doctor.__main__", "--deeper"),
    ("doctor.__main__", "--config", "pipe"),
    ("dataset_stats.__main__", "folder"),
    ("dataset_stats.__main__", "nowhere", "-o", "out.json"),
    ("dataset_stats.__main__", "folder", "-o", "s3://bucket/out.json"),
    ("dataset_stats.__main__", "folder", "-o", "$UNSET/out.json"),
    ("report.__main__", "folder", "--live", "--port", "x"),
    ("report.__main__", "folder", "--live", "--port", "70000"),
    ("launch", *FAKE, "--live", "x"),
    ("launch", *FAKE, "--live", "--ray.submit", "http://head:8265"),
    ("table.__main__",),
    ("table.__main__", "nowhere"),
    ("table.__main__", "folder", "--format", "html"),
    ("table.__main__", "folder", "--names", "a,,b"),
    ("table.__main__", "folder", "--names", "a,b"),
    ("table.__main__", "folder", "-o", "nowhere/table.md"),
    ("table.__main__", "folder", "--mix", "yes"),
    ("bench.__main__",),
    ("bench.__main__", "nosuch"),
    ("bench.__main__", "env", "--tasks", "libero_object"),
    ("bench.__main__", "env", "--tasks", "libero_object:x"),
    ("bench.__main__", "env", "--tasks", ":0"),
    ("bench.__main__", "env", "--tasks", "libero_object:-1"),
    ("bench.__main__", "env", "--tasks"),
    ("bench.__main__", "env", "--trials", "0"),
    ("bench.__main__", "env", "--trials", "x"),
    ("bench.__main__", "env", "--steps", "-1"),
    ("bench.__main__", "env", "--steps", "0"),
    ("bench.__main__", "env", "--json", "nowhere/figures.json"),
    ("bench.__main__", "env", "--json", "folder"),
    ("bench.__main__", "e2e", "--envs", "0"),
    ("bench.__main__", "e2e", "--envs", "many"),
    ("bench.__main__", "e2e", "--trials", "0"),
    ("bench.__main__", "e2e", "--tasks", "x"),
    ("bench.__main__", "e2e", "--suite", "a b"),
    ("bench.__main__", "e2e", "--json", "file/figures.json"),
    ("bench.__main__", "scale"),
    ("tests.bench.__main__", "scale", "--plot", "nowhere/scale.svg"),
    ("tests.bench.__main__", "scale", "--plot", "file/scale.svg"),
    ("tests.bench.__main__", "scale", "--plot", "folder"),
    ("tests.bench.__main__", "scale", "--plot", "scale.nosuch"),
    ("tests.bench.__main__", "scale", "--json", "nowhere/scale.json"),
    ("tests.bench.__main__", "scale", "--driver-ms", "0"),
    ("tests.bench.__main__", "scale", "--driver-ms", "nan"),
    ("tests.bench.__main__", "scale", "--driver-ms", "inf"),
    ("tests.bench.__main__", "scale", "--real-actors", "0"),
    ("tests.bench.__main__", "scale", "--real-episodes", "2001"),
    ("tests.bench.__main__", "scale", "--real-runs", "-1"),
    ("tests.bench.__main__", "scale", "--instant-actors", "-1"),
    ("tests.bench.__main__", "scale", "--paper-actors", "-1"),
    ("tests.bench.__main__", "scale", "--paper-episodes", "0"),
    ("tests.bench.__main__", "scale", "--replicas", "-1"),
    ("tests.bench.__main__", "scale", "--parts", "-1"),
    ("tests.bench.__main__", "scale", "--env-actors", "1", "0"),
    ("tests.bench.__main__", "scale", "--gpus", str(10**30)),
    ("bench.__main__", "policy", "--batch", "0"),
    ("bench.__main__", "policy", "--precision", "float16"),
    ("bench.__main__", "policy", "--json", "folder"),
    ("models.synthetic",),
    ("models.synthetic", "out", "--seed", "-1"),
    ("models.synthetic", "out", "--seed", "x"),
    ("models.synthetic", "out", "--seed", str(2**64)),
    ("models.synthetic", "out", "--variant", "huge"),
    ("models.synthetic", "out", "--precision", "int8"),
    ("models.synthetic", "file"),
    ("models.synthetic", "file/out"),
    ("models.synthetic", "$UNSET/out"),
    ("models.synthetic", "s3://bucket/out"),
    ("video.__main__",),
    ("video.__main__", "folder", "--camera", "nosuch"),
    ("video.__main__", "folder", "--camera"),
    ("video.__main__", "folder", "--size", "17"),
    ("video.__main__", "folder", "--size", "4096"),
    ("video.__main__", "folder", "--fps", "0"),
    ("video.__main__", "folder", "--fps", "121"),
    ("video.__main__", "folder", "--every", "0"),
    ("video.__main__", "folder", "--max-count", "0"),
    ("video.__main__", "folder", "--num-actors", "-1"),
    ("video.__main__", "folder", "--num-actors", "100000"),
    ("video.__main__", "folder", "--tasks", "x"),
    ("video.__main__", "folder", "--trials", "-1"),
    ("video.__main__", "folder", "--status", "error"),
    ("video.__main__", "folder", "--out", "file"),
    ("video.__main__", "folder", "--out", "file/below"),
    ("video.__main__", "folder", "--out", "s3://bucket/videos"),
    ("report.__main__",),
    ("report.__main__", "folder", "--embed-mb", "nan"),
    ("report.__main__", "folder", "--embed-mb", "inf"),
    ("report.__main__", "folder", "--embed-mb", "-1"),
    ("report.__main__", "folder", "--embed", "nan"),
    ("report.__main__", "folder", "--out", "folder"),
    ("report.__main__", "folder", "--out", "nowhere/report.html"),
    ("compare", "folder"),
    ("compare", "folder", "folder", "--flips", "-1"),
    ("compare", "folder", "folder", "--flips", "x"),
    ("compare", "folder", "folder", "--power", "0"),
    ("compare", "folder", "folder", "--power", "nan"),
    ("compare", "folder", "folder", "--power", "101"),
    ("compare", "folder", "folder", "--json", "folder"),
    ("compare", "folder", "folder", "--json", "file/numbers.json"),
    ("export.__main__", "nosuch", "folder", "out"),
    ("export.__main__", "lerobot", "folder"),
    ("export.__main__", "lerobot", "folder", "file/out"),
    ("export.__main__", "lerobot", "folder", "s3://bucket/out"),
    *_settings(),
    *_paths(),
    *(("report.__main__", run) for run in NO_RUNS),
    *(("compare", run, "folder") for run in NO_RUNS),
    *(("video.__main__", run) for run in NO_RUNS),
    *(("export.__main__", "lerobot", run, "out") for run in NO_RUNS),
]
NEEDS_LIBERO: list[tuple[str, ...]] = [
    ("launch", "--task_suite", "libero_objct"),
    ("launch", "--policy", "noop", "--tasks", "10"),
    ("launch", "--policy", "noop", "--num_trials_per_task", "51"),
    ("bench.__main__", "env", "--tasks", "libero_object:99"),
    ("bench.__main__", "env", "--tasks", "libero_object:0", "nosuch:0"),
    ("bench.__main__", "env", "--trials", "51"),
]


@pytest.mark.parametrize("call", [*CALLS, *(pytest.param(call, marks=libero) for call in NEEDS_LIBERO)], ids=repr)
def test_a_malformed_call_is_one_line(call: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *argv = call
    module = pytest.importorskip(name if name.startswith("tests.") else f"wpray.{name}", exc_type=ImportError)
    check_refused(place, module.dispatch if name == "__main__" else module.main, capsys, argv)


FILES = [
    "seed: 1\nseed: 2",
    "env: {renderer: egl, renderer: osmesa}",
    "retry:\n  stall_s: 3\n  stall_s: 4",
    "ray.address: auto\nray: {address: auto}",
    "ray: {}\nray: {}",
    "ray: '{}'",
    "ray: [1]\nray.address: auto",
    "env: 3",
    "video: true",
    "seed: true",
    "num_parallel: true",
    "tasks: [true]",
    "tasks: []",
    "tasks: {a: 1}",
    "num_steps_wait: false",
    "video: {fps: true}",
    "ray: {env_resources: {a: true}}",
    "ray: {env_resources: {GPU: 0}}",
    "ray: {env_resources: {CPU: 1}}",
    "env: {max_steps: 1000000000000000000000000000000}",
    "num_parallel: 100000",
    "num_parallel: 2\nray.num_env_actors: 3",
    "seed: .nan",
    "retry.stall_s: .inf",
    "retry: {stall_s: 0.2}",
    "env: {memory_gb: 1.0e+300}",
    "stop_when: {reference_rate: 0.5, difference: 0.6}",
    'output_dir: "a\\0b"',
    'output_dir: "a\\tb"',
    'output_dir: "\\ud800"',
    "output_dir: ''",
    "output_dir: 3",
    "output_dir: $UNSET/run",
    "video_out_path: ~nobody-of-this-name/videos",
    "a: &a [*a]",
    "a: &a {b: *a}",
    "seed: *nowhere",
    "- 1",
    "text",
    "a: b: c",
    "1: 2",
    "? [a]\n: 1",
    "? {a: 1}\n: 1",
    "seed: 1\n---\nseed: 2",
    "seed: !!python/object/apply:os.getcwd []",
    "\ufeff- 1",
    "\0",
    "ray: {submit: 'ftp://head'}",
    "ray.address.host: x",
    ".: 1",
]


@pytest.mark.parametrize("text", FILES)
def test_a_malformed_configuration_file_is_one_line(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wpray.launch import main

    (place / "c.yaml").write_text(text)
    check_refused(place, main, capsys, ["--config", "c.yaml"])


STATISTICS = list(
    itertools.product(
        ("action", "proprio"),
        ("q01", "q99", "mean", "std", "min", "max"),
        ("null", "[]", "3", '"x"', "[1]", "[[1, 1, 1, 1, 1, 1, 1]]", "NaN"),
    )
)


@pytest.mark.parametrize(("field", "name", "value"), STATISTICS)
def test_malformed_statistics_are_one_line(
    field: str, name: str, value: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from wpray.policies.waypoint_vla.statistics import load_scaling

    levels = {"mean": 0.0, "std": 1.0, "q01": -1.0, "q99": 1.0, "min": -2.0, "max": 2.0}
    whole = {key: {level: [at] * size for level, at in levels.items()} for key, size in (("action", 7), ("proprio", 8))}
    whole[field][name] = ["HERE"]  # type: ignore[list-item]
    path = place / "statistics.json"
    path.write_text(json.dumps({"libero_object": whole}).replace('["HERE"]', value))
    line = check_refused(place, lambda _: int(load_scaling(path, "q99", "libero_object") is None), capsys)
    assert str(path) in line


def test_there_are_as_many_as_the_readme_says() -> None:
    """With the 610 that hypothesis makes in test_malformed."""
    fed = [*map(repr, (*CALLS, *NEEDS_LIBERO)), *FILES, *map(repr, STATISTICS)]
    assert len(fed) == len(set(fed))
    assert len(fed) >= 450, len(fed)
