"""A relay passes requests on: many at once, each with its own error, and never as a sign of a hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from wpray.config.groups import BatchingConfig
from wpray.errors import InvalidRequestError
from wpray.policies.base import PolicySpec
from wpray.policies.batching import Batcher
from wpray.policies.relay import Relay, answering
from wpray.policies.request_queue import PolicyError
from wpray.types import ChunkReply, ChunkRequest, Observation, Task, Trial

TASK = Task("toy", 0, "toy", "do it", num_trials=1000, max_steps=10)
LONG_S = 30.0


class Elsewhere:
    """Answers with the trial's number once `count` requests are under way."""

    spec = PolicySpec("toy", False, False, num_gpus=0, max_batch_size=1, kind="chunk", remote=True)

    def __init__(self, count: int = 1) -> None:
        self._together = threading.Barrier(count)

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        (request,) = requests
        if request.trial.init_state == 13:
            raise InvalidRequestError("not 13")
        self._together.wait(LONG_S)
        return [ChunkReply(np.full((1, 7), float(request.trial.init_state)))]


def _request(number: int) -> ChunkRequest:
    return ChunkRequest(Trial(TASK, number, 0), 0, Observation(np.zeros(8)))


def test_requests_are_under_way_together_and_answered_apart() -> None:
    relay = Relay(Elsewhere(8))
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda number: relay.predict(_request(number)), range(8)))
    assert [reply.actions[0, 0] for reply in replies] == list(range(8))
    assert all(reply.timing.batch_size == 1 and reply.timing.compute_s > 0 for reply in replies)
    assert relay.batches == 8 and 0 < relay.busy_s < LONG_S


def test_an_error_is_the_requests_own() -> None:
    relay = Relay(Elsewhere())
    with pytest.raises(PolicyError) as failure:
        relay.predict(_request(13))
    assert failure.value.failure.origin == "request" and "not 13" in failure.value.failure.traceback
    assert relay.predict(_request(1)).actions[0, 0] == 1


def test_a_wait_is_never_a_hang_and_a_retry_is_never_announced() -> None:
    relay, announced = Relay(Elsewhere(2)), list[None]()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(relay.predict, _request(0), lambda: announced.append(None))
        time.sleep(0.05)
        assert relay.busy_since is None
        relay.predict(_request(1))
        first.result(LONG_S)
    assert not announced


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, Relay), ({"remote": False}, Batcher), ({"max_batch_size": 4}, Batcher)],
)
def test_only_what_is_answered_elsewhere_one_by_one_is_relayed(changes: dict[str, object], kind: type) -> None:
    policy = Elsewhere()
    policy.spec = replace(Elsewhere.spec, **changes)  # type: ignore[arg-type]
    found = answering(policy, BatchingConfig())
    assert type(found) is kind
    found.close()
