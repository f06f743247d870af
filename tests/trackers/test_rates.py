"""What a tracker gets while a run is under way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wpray.benchmarks.fake.environment import fake_tasks
from wpray.results.encode import EncodedEpisode
from wpray.results.statistics import stratified
from wpray.results.summary import Tally
from wpray.run.tracked import TrackedRates, rates_of
from wpray.types import Trial, TrialKey


def test_points_come_as_often_as_they_cost_little() -> None:
    tally, sent = Tally.planned([(fake_tasks()[0], 9)]), []
    times = iter([0.0, 0.0, 0.0, 0.9, 1.0, 1.5, 51.4, 51.5, 51.5])
    rates = TrackedRates(tally, lambda kind, content: sent.append(content), lambda: next(times))
    trial, episode = Trial(fake_tasks()[0], 0, 0), _nothing()
    for _ in range(2):
        rates.on_episode(trial, episode)  # at 0 s, and too soon at 0.9 s
    assert len(sent) == 1
    rates.on_episode(trial, episode)  # at 1 s: takes 0.5 s, so the next is due 50 s later
    rates.on_episode(trial, episode)
    assert len(sent) == 2
    rates.on_episode(trial, episode)
    assert len(sent) == 3


def test_rates_have_their_intervals_and_those_of_several_suites() -> None:
    tasks = [fake_tasks()[0], replace(fake_tasks()[0], suite="fake_other")]
    tally = Tally.planned([(task, 2) for task in tasks])
    assert rates_of(tally) == {"episodes": 0, "metrics": {"errors": 0}}
    tally.add(TrialKey(tasks[0].suite, 0, 0), "success", 9)
    tally.add(TrialKey(tasks[0].suite, 0, 1), "failure", 9)
    tally.add(TrialKey(tasks[1].suite, 0, 0), "error", 0)
    found = rates_of(tally)
    overall = stratified([(1, 2)])
    assert found["episodes"] == 3 and found["metrics"]["errors"] == 1
    assert found["metrics"]["success_rate"] == 0.5
    assert found["metrics"]["success_rate_low"] == pytest.approx(overall.low)
    assert found["metrics"]["fake/success_rate_high"] == pytest.approx(overall.high)
    assert not any(name.startswith("fake_other/") for name in found["metrics"])  # nothing was tried there


def _nothing() -> EncodedEpisode:
    episode: Any = None  # which rates do not look at
    return episode
