"""Keep a trial for every env actor, however late it is ready, so that a test of several does not depend on load."""

from __future__ import annotations

import pytest

from wpray.orchestration.scheduler import Assignment, Scheduler


def keep_a_trial_for_each(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    """Let no worker of a run in this process take a trial that one of `num_workers` needs for its first."""
    next_for, seen = Scheduler.next_for, set[str]()

    def next_unless_kept(scheduler: Scheduler, worker: str) -> Assignment | None:
        kept = num_workers - len(seen | {worker})
        if worker in seen and scheduler.num_pending <= kept:
            return None
        seen.add(worker)
        return next_for(scheduler, worker)

    monkeypatch.setattr(Scheduler, "next_for", next_unless_kept)
