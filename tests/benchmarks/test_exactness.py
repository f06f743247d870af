"""Bit-identity with stock LIBERO, each in a process of its own: the claim that everything else rests on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest

from wpray.bench.env_subjects import SubjectKind, SubjectRecording, open_subject, run_trial
from wpray.benchmarks.libero import tasks
from wpray.types import FloatArray, Trial

pytestmark = pytest.mark.libero

WAIT, STEPS = 4, 20
DECISIONS = frozenset({0, WAIT, WAIT + 11, WAIT + STEPS - 1})  # the first step after a reset is special: see it too


@contextmanager
def _subject(kind: SubjectKind, suite: str, task_id: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=partial(open_subject, kind, suite, task_id)) as process:
        yield process


def _actions(seed: int) -> FloatArray:
    """Zero actions, then smooth motion that turns the hand, opens and closes it."""
    drift = np.cumsum(np.random.default_rng(seed).uniform(-0.3, 0.3, (STEPS, 7)), axis=0)
    return np.concatenate([np.zeros((WAIT, 7)), np.clip(drift, -1, 1)])


def _record(suite: str, task_id: int, trials: tuple[int, ...]) -> list[tuple[SubjectRecording, SubjectRecording]]:
    """(stock, ours) for each trial; both run at the same time."""
    task, pairs = tasks.list_tasks(suite)[task_id], []
    with ExitStack() as stack:
        kinds: tuple[SubjectKind, SubjectKind] = ("stock", "ours")
        both = [stack.enter_context(_subject(kind, suite, task_id)) for kind in kinds]
        for index in trials:
            given = (Trial(task, index, seed=0), _actions(index), DECISIONS)
            stock, ours = (process.submit(run_trial, *given) for process in both)
            pairs.append((stock.result(), ours.result()))
    return pairs


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("suite", "task_id", "trials"),
    [
        ("libero_object", 0, (3,)),
        ("libero_spatial", 5, (3, 0)),  # the second follows another, as nothing in its result may show
    ],
)
def test_every_step_and_image_is_bit_identical_to_stock(suite: str, task_id: int, trials: tuple[int, ...]) -> None:
    for stock, ours in _record(suite, task_id, trials):
        assert len(ours.qpos) == len(stock.qpos) == WAIT + STEPS
        assert ours.done == stock.done
        assert np.array_equal(ours.qpos, stock.qpos)
        assert np.array_equal(ours.qvel, stock.qvel)
        assert not np.array_equal(ours.qpos[0], ours.qpos[-1])
        assert len(ours.seen) == len(stock.seen) == len(DECISIONS)
        for mine, theirs in zip(ours.seen, stock.seen, strict=True):
            assert np.array_equal(mine.proprio, theirs.proprio)
            assert np.array_equal(mine.base_image, theirs.base_image)
            assert np.array_equal(mine.wrist_image, theirs.wrist_image)
