"""Names that wpray adds to openpi's protocol. A server whose description has `wpray: {...}` reads and writes them.

They make a run through such a server the same as one in a process: the trial's key seeds the noise, and the memory
that a reply gives comes back with the next request of the episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from wpray.errors import BadInputError, InvalidRequestError
from wpray.types import PROPRIO_FIELDS, ActionSpec, Task, Trial

OWN = "wpray"  # key in a server's description
MAX_REQUESTS = "max_requests"  # number of requests at once that suits it
EXECUTE = "execute_steps"  # actions of a chunk, 0: all
TRIAL, INDEX, MEMORY, DONE = "wpray/trial", "wpray/chunk_index", "wpray/memory", "done"
_MOST_REQUESTS = 256
_TASK_NUMBERS = ("task_id", "num_trials", "max_steps")


def camera_key(role: str) -> str:
    """Return the name of a camera's image; the base camera's is openpi's."""
    return "observation/image" if role == "base" else f"observation/{role}_image"


def max_requests_of(facts: Mapping[str, Any]) -> int:
    """Return how many requests at once suit a server; 1 unless it is wpray's own."""
    said = facts.get(MAX_REQUESTS) if OWN in facts else None
    return min(said, _MOST_REQUESTS) if type(said) is int and said >= 1 else 1


def check_fits(facts: Mapping[str, Any], sizes: Mapping[str | None, int], state_key: str) -> None:
    """Raise BadInputError if a server of wpray requires something else than it is sent, or returns other actions.

    `sizes`: of the images that are sent, by name.
    """
    own = facts.get(OWN)
    wants, gives = (own.get(part) if isinstance(own, Mapping) else None for part in ("wants", "gives"))
    _check_actions(gives if isinstance(gives, Mapping) else {})
    for name, shape in (wants if isinstance(wants, Mapping) else {}).items():
        if name == state_key and shape != list(PROPRIO_FIELDS):
            raise BadInputError(f"it wants {name} as {shape!r:.200}, and gets {', '.join(PROPRIO_FIELDS)}")
        if not name.endswith("image") or not isinstance(shape, list):
            continue
        if name not in sizes:
            raise BadInputError(f"it wants {name}, which is not sent")
        if shape[:2] != [sizes[name]] * 2:
            raise BadInputError(f"it wants {name} as {shape[:2]}; set policy_args.image_size")


def _check_actions(gives: Mapping[str, Any]) -> None:
    for name, meant in asdict(ActionSpec()).items():
        if gives.get(name, meant) != meant:
            raise BadInputError(f"its actions have {name} {gives[name]!r:.40}, and LIBERO's have {name} {meant}")


def form_of(trial: Trial) -> dict[str, Any]:
    """Return a trial without its instruction, which is the prompt."""
    task = trial.task
    names = {"suite": task.suite, "name": task.name, "trial": trial.init_state, "seed": trial.seed}
    return {**names, **{name: getattr(task, name) for name in _TASK_NUMBERS}}


def trial_of(form: Any, instruction: str) -> Trial:
    """Return the trial that `form_of` described. Raises InvalidRequestError for anything else."""
    if not isinstance(form, Mapping):
        raise InvalidRequestError(f"{TRIAL}: must be a map, not {form!r:.80}")
    suite, name = (_checked(form, key, str) for key in ("suite", "name"))
    numbers = [_checked(form, key, int) for key in _TASK_NUMBERS]
    task = Task(suite, numbers[0], name, instruction, *numbers[1:])
    return Trial(task, _checked(form, "trial", int), _checked(form, "seed", int))


def _checked(form: Mapping[Any, Any], key: str, kind: type) -> Any:
    value = form.get(key)
    if type(value) is not kind:
        raise InvalidRequestError(f"{TRIAL}: {key} must be {kind.__name__}, not {value!r:.80}")
    return value
