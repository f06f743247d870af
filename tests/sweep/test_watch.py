"""A checkpoint of a training run that still writes counts when its files are complete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from wpray.errors import BadInputError
from wpray.sweep.folder import SweepFolder
from wpray.sweep.grid import SweepCheckpoint, read_grid
from wpray.sweep.watch import LOOK_S, Watch, check_headers

WEIGHTS = save({"a": np.zeros((8, 8), np.float32)})
OTHERS = save({"b": np.zeros((4, 4), np.float32)})


class Training:
    """A training run, its clock, and the watch over it."""

    def __init__(self, root: Path) -> None:
        self.root, self.now, self.refused = root, 0.0, ""
        grid = read_grid({"task_suite": "fake", "policy": "noop", "vlm_checkpoint": f"{root}/run/step_*/vlm"})
        self.then: list[tuple[float, int]] = []  # what it writes later: time, step
        folder = SweepFolder(root / "out", {})
        self.watch = Watch(grid, folder, 60, self._check, lambda: self.now, self._sleep)

    def write(self, step: int, name: str = "model.safetensors", content: bytes = WEIGHTS) -> None:
        place = self.root / "run" / f"step_{step}" / "vlm"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)

    def steps(self) -> list[str]:
        """Return the checkpoints that count now, a look later."""
        self.now += LOOK_S
        return [Path(str(job.config.vlm_checkpoint)).parent.name for job in self.watch.left(())]

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.then and self.then[0][0] <= self.now:
            self.write(self.then.pop(0)[1])

    def _check(self, checkpoint: SweepCheckpoint) -> None:
        if self.refused:
            raise BadInputError(self.refused)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_a_file_counts_once_it_is_as_long_as_its_header_says(training: Training) -> None:
    training.write(200, content=WEIGHTS[:-10])
    assert [training.steps() for _ in range(3)] == [[], [], []]
    assert "not a safetensors file" in next(iter(training.watch.incomplete.values()))
    training.write(200)
    assert training.steps() == []  # it has changed since the last look
    assert training.steps() == ["step_200"]
    training.write(1000)
    training.write(30)
    assert [training.steps(), training.steps()][1] == ["step_30", "step_200", "step_1000"]
    assert not training.watch.incomplete


def test_an_index_counts_once_all_its_shards_are_there(training: Training) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    training.write(5, "model.safetensors.index.json", json.dumps({"weight_map": shards}).encode())
    training.write(5, shards["a"])
    assert [training.steps(), training.steps()][1] == []
    assert "names shards that are not there" in next(iter(training.watch.incomplete.values()))
    training.write(5, shards["b"], OTHERS[:20])
    assert [training.steps(), training.steps()][1] == []
    training.write(5, shards["b"], OTHERS)
    assert [training.steps(), training.steps()][1] == ["step_5"]


def test_what_the_policy_cannot_read_yet_does_not_count(training: Training) -> None:
    training.refused = "vlm_checkpoint: no tokenizer"
    training.write(5)
    assert [training.steps(), training.steps()][1] == []
    assert list(training.watch.incomplete.values()) == ["vlm_checkpoint: no tokenizer"]
    training.refused = ""
    assert training.steps() == ["step_5"]


def test_other_files_count_once_they_stay_as_they_are(training: Training) -> None:
    for size in (10, 20, 30):
        training.write(5, "params.msgpack", b"x" * size)
        assert training.steps() == []
    assert training.steps() == ["step_5"]


def test_it_waits_until_none_has_come_for_long(training: Training) -> None:
    training.then = [(40.0, 1), (95.0, 2)]
    assert training.watch.wait(())
    assert len(training.watch.left(())) == 1
    failed = {job.name for job in training.watch.left(())}
    assert training.watch.wait(failed)  # the second came within 60 s of the first
    failed |= {job.name for job in training.watch.left(())}
    began = training.now
    assert not training.watch.wait(failed)
    assert 60 - LOOK_S <= training.now - began <= 60 + 2 * LOOK_S


def test_a_checkpoint_that_came_during_a_long_run_is_not_given_up(training: Training) -> None:
    training.then = [(5.0, 1)]
    assert training.watch.wait(())
    failed = {job.name for job in training.watch.left(())}
    training.write(2)
    training.now += 3600
    assert training.watch.left(failed) == []
    assert training.watch.wait(failed)
    assert len(training.watch.left(failed)) == 1


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="holds no file"):
        check_headers(tmp_path)
