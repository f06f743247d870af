"""The doctor's check of servers: each is reachable, is what the settings say, and answers a request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from wpray.checks import CheckResult
from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.base import ChunkPolicy, PolicyCheck, PolicySpec
from wpray.policies.remote.settings import ServerSettings
from wpray.policies.remote.trouble import in_one_line
from wpray.types import ChunkRequest, Observation, Task, Trial

_PATIENCE_S = 60.0  # a first request may compile a model
_STATE = (-0.05, 0.0, 1.17, 3.14, 0.0, 0.0, 0.04, -0.04)  # of LIBERO's robot at an episode's start
_REMEDY = "start the server, or check policy_args"


def server_check(policy: Callable[..., Any], settings: ServerSettings) -> PolicyCheck:
    """Return the check of all servers of a policy, which `policy(settings, patient=False)` makes."""
    return PolicyCheck("servers", partial(_check_servers, policy, settings), local=False)


def _check_servers(policy: Callable[..., Any], settings: ServerSettings) -> list[CheckResult]:
    return [result for url in settings.url for result in _check_server(policy, settings, url)]


def _check_server(policy: Callable[..., Any], settings: ServerSettings, url: str) -> Iterator[CheckResult]:
    """Yield what one server said and did, with a warning for each oddity of its description."""
    patience_s = min(settings.timeout_s, _PATIENCE_S)
    alone = settings.model_copy(update={"url": [url], "connections": 1, "timeout_s": patience_s})
    try:
        asked = policy(alone, patient=False)
        try:
            yield CheckResult("servers", "pass", f"{url}: {_round_trips(asked)}; {_description(asked)}")
        finally:
            asked.close()
    except (BadInputError, InvalidRequestError) as error:
        text = in_one_line(error)
        yield CheckResult("servers", "fail", text if url in text else f"{url}: {text}", _REMEDY)
        return
    for warning in asked.sources.warnings:
        yield CheckResult("servers", "warn", warning)


def _round_trips(policy: ChunkPolicy) -> str:
    """Ask twice, because the first answer may include a compilation, and return what came back."""
    times_ms = []
    for index in range(2):
        began = time.perf_counter()
        (reply,) = policy.predict([_request(policy.spec, index)])
        times_ms.append(1000 * (time.perf_counter() - began))
    gripper = np.unique(reply.actions[:, -1].round(2))
    shown = f"{gripper[0]:g}" if len(gripper) == 1 else f"{gripper[0]:g} to {gripper[-1]:g}"
    counted = f"{len(reply.actions)} action{'s' if len(reply.actions) > 1 else ''}"
    return f"{counted} in {times_ms[1]:.0f} ms (at first {times_ms[0]:.0f}), gripper {shown}"


def _description(policy: Any) -> str:
    said = json.dumps(policy.sources.facts["servers"])
    return f"it says of itself {said[:300]}" if len(said) > len("{}") else "it says nothing of itself"


def _request(spec: PolicySpec, index: int) -> ChunkRequest:
    images = {role: np.full((view.height, view.width, 3), 128, np.uint8) for role, view in spec.cameras.items()}
    task = Task("libero_object", 0, "doctor", "pick up the bowl", num_trials=1, max_steps=10)
    return ChunkRequest(Trial(task, 0, 0), index, Observation(np.array(_STATE), images))
