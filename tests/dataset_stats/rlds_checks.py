"""`wpray.dataset_stats` on data sets that TFDS writes here, against plain numpy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.rlds_files import decode_everything, write_rlds
from wpray.cli.command import run_command
from wpray.dataset_stats import rlds
from wpray.dataset_stats.__main__ import main
from wpray.policies.waypoint_vla.statistics import load_scaling

pytest.importorskip("tensorflow_datasets", reason="needs the extra wpray[rlds]")
LENGTHS = [31, 1, 77, 50]


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rlds_environment().items():
            patch.setenv(name, value)
        yield


def rlds_environment() -> dict[str, str]:
    """Return the variables that keep TensorFlow off the GPUs, which must be gone again when other modules start Ray."""
    environ: dict[str, str] = {}
    rlds.hide_gpus(environ)
    return environ


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("rlds")
    actions, states = write_rlds(root, "libero_object_no_noops", LENGTHS)
    return SimpleNamespace(root=root, folder=root / "libero_object_no_noops" / "1.0.0", actions=actions, states=states)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("png")
    write_rlds(root, "libero_goal_no_noops", [9, 5], encoding="png", seed=1)
    return root


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def expect(found: dict[str, Any], rows: np.ndarray) -> None:
    plain = {
        "q01": np.percentile(rows, 1, axis=0),
        "q99": np.percentile(rows, 99, axis=0),
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
    }
    for name, value in plain.items():
        assert np.array_equal(np.array(found[name], dtype=np.float32), value), name
    np.testing.assert_allclose(found["mean"], rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["std"], rows.std(axis=0), rtol=1e-5)


def test_the_file_holds_what_plain_numpy_computes_and_normalization_reads_it(
    toy: SimpleNamespace, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "dataset_statistics.json"
    assert main([str(toy.folder), "-o", str(output)]) == 0
    found = read(output)["libero_object_no_noops"]
    expect(found["action"], toy.actions)
    expect(found["proprio"], toy.states)
    assert (found["num_samples"], found["num_transitions"], found["num_trajectories"]) == (159, 159, 4)
    scaling = load_scaling(output, "q99", "libero_object")
    assert np.array_equal(scaling.proprio.low, np.percentile(toy.states, 1, axis=0))


def test_several_data_sets_share_a_file_and_a_nested_double_folder_is_found(
    toy: SimpleNamespace, other: Path, tmp_path: Path
) -> None:
    double = tmp_path / "libero_object_no_noops"
    shutil.copytree(toy.root / "libero_object_no_noops", double / "libero_object_no_noops")
    output = tmp_path / "both.json"
    assert main([str(double), str(other), "-o", str(output)]) == 0
    found = read(output)
    assert set(found) == {"libero_object_no_noops", "libero_goal_no_noops"}
    assert found["libero_goal_no_noops"]["num_trajectories"] == 2
    expect(found["libero_object_no_noops"]["action"], toy.actions)


def test_flat_leaves_the_name_out(toy: SimpleNamespace, tmp_path: Path) -> None:
    output = tmp_path / "flat.json"
    assert main([str(toy.root), "-o", str(output), "--flat", "--split", "train"]) == 0
    assert set(read(output)) == {"action", "proprio", "num_samples", "num_transitions", "num_trajectories"}
    load_scaling(output, "normal", "libero_object")


def test_the_newer_layout_is_read_as_one_of_six_dimensions(toy: SimpleNamespace, tmp_path: Path) -> None:
    output = tmp_path / "newer.json"
    assert main([str(toy.root), "-o", str(output), "--layout", "6d"]) == 0
    found = read(output)["libero_object_no_noops"]
    expect(found["proprio"], toy.states[:, :6])
    opening = 1 - np.clip(toy.actions[:, 6:], 0, 1)
    expect(found["action"], np.concatenate([toy.actions[:, :6], opening], axis=1))
    assert load_scaling(output, "q99", "libero_object").proprio_dim == 6


def damaged(toy: SimpleNamespace, folder: Path) -> Path:
    shutil.copytree(toy.folder, folder / "x" / "1.0.0")
    for shard in (folder / "x" / "1.0.0").glob("*.tfrecord*"):
        raw = bytearray(shard.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        shard.write_bytes(raw)
    return folder


def pointer(toy: SimpleNamespace, folder: Path) -> Path:
    shutil.copytree(toy.folder, folder / "x" / "1.0.0")
    for shard in (folder / "x" / "1.0.0").glob("*.tfrecord*"):
        shard.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 9\n")
    return folder


def without_shards(toy: SimpleNamespace, folder: Path) -> Path:
    shutil.copytree(toy.folder, folder / "x" / "1.0.0", ignore=shutil.ignore_patterns("*.tfrecord*"))
    return folder


def two_versions(toy: SimpleNamespace, folder: Path) -> Path:
    for version in ("1.0.0", "1.1.0"):
        shutil.copytree(toy.folder, folder / "x" / version)
    return folder


def emptied(toy: SimpleNamespace, folder: Path) -> Path:
    shutil.copytree(toy.folder, folder / "x" / "1.0.0")
    info = folder / "x" / "1.0.0" / "dataset_info.json"
    data = read(info)
    data["splits"][0]["shardLengths"] = ["0"]
    info.write_text(json.dumps(data))
    return folder


def not_json(toy: SimpleNamespace, folder: Path) -> Path:
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text("{")
    return folder


def other_robot(toy: SimpleNamespace, folder: Path) -> Path:
    write_rlds(folder, "bridge", [3], state_dim=9)
    return folder


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (damaged, "cannot be read to its end"),
        (pointer, "-00000-of-00001 is a git-lfs pointer; run: git lfs pull"),
        (without_shards, "cannot be read to its end"),
        (two_versions, "holds versions 1.0.0, 1.1.0"),
        (emptied, "holds no episodes"),
        (not_json, "not a readable RLDS data set"),
        (other_robot, "steps/observation/state is float32 (9,)"),
        (lambda toy, folder: folder, "no RLDS data set here"),
        (lambda toy, folder: folder / "nowhere", "no such folder"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_one_line(
    make: Any, hint: str, toy: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    output = tmp_path / "o.json"
    assert run_command(main, [str(make(toy, source)), "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert hint in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_an_output_that_cannot_be_written_is_one_line_before_anything_is_read(
    toy: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "o.json", Path("/proc/nowhere/o.json")):
        assert run_command(main, ["/does/not/exist", "-o", str(output)]) == 2
        error = capsys.readouterr().err
        assert str(output) in error
        assert error.count("\n") == 1


def test_mistakes_on_the_command_line_are_one_line(
    toy: SimpleNamespace, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["-o", str(tmp_path / "o.json")]
    for argv, hint in [
        ([str(toy.root), str(other), "--flat", *output], "--flat"),
        ([str(toy.root), str(toy.folder), *output], "named twice"),
        ([str(toy.root), "--split", "validation", *output], "validation"),
        ([str(toy.root)], "-o"),
    ]:
        assert run_command(main, argv) == 2
        error = capsys.readouterr().err
        assert hint in error
        assert error.count("\n") == 1


def test_it_is_20_times_faster_than_decoding_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rlds(tmp_path, "speed", [100] * 20)
    folder = tmp_path / "speed" / "1.0.0"

    def plain() -> float:
        return _timed(lambda: decode_everything(folder, 3))

    def ours() -> float:
        return _timed(lambda: sum(len(episode.action) for episode in rlds.open_data_set(folder).episodes()))

    plain(), ours()  # both have started their threads and read the files once
    ratio = min(plain() for _ in range(2)) / min(ours() for _ in range(3))
    with capsys.disabled():
        print(f"\ndataset_stats reads {ratio:.0f} times as fast as decoding everything")
    assert ratio >= 20


def _timed(read_steps: Any) -> float:
    began = time.perf_counter()
    count = read_steps()
    return (time.perf_counter() - began) / count


def test_tensorflow_never_sees_a_gpu_and_says_nothing(toy: SimpleNamespace, tmp_path: Path) -> None:
    code = (
        "import os, sys; from wpray.dataset_stats.__main__ import main; "
        f"main([{str(toy.root)!r}, '-o', {str(tmp_path / 'o.json')!r}]); "
        "import tensorflow as tf; assert os.environ['CUDA_VISIBLE_DEVICES'] == '-1'; "
        "assert tf.config.get_visible_devices('GPU') == []"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "libero_object_no_noops: 159 steps of 4 episodes"
