"""YAML files of the training code as flat settings: the section `eval`, and keys without effect here.

Every key is read with its meaning, accepted because any of its values means the same here, or refused: none is skipped.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from wpray.errors import BadInputError, shown

_LOG = logging.getLogger(__name__)
_SECTION, _DECODE = "eval", "waypoint_decode"
_IMPLEMENTATIONS = {"legacy": "token_ar", "compact": "token_ar", "jacobi": "token_ar", "block": "block_ar"}


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _only(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value in allowed and type(value) in {type(one) for one in allowed}


# Keys without effect here: test of their values, and the reason for a message.
_INERT: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "robot_config_kwargs": (_only({}), "it must be empty: LIBERO's robot has no options"),
    "max_duration": (_only(32), "no other than 32 is known"),
    "planner_block0_cond": (_only("none"), "only none is known"),
    "goal_condition_mode": (_only("none"), "only none is known"),
    "skip_masked_cameras": (_boolean, "true or false; a camera that is not there is always left out"),
    "deterministic_sdpa": (_boolean, "true or false; batching.deterministic says what is exact"),
    "ae_compile_mode": (_text, "a mode of torch.compile; torch_compile says whether work is captured"),
    "use_gripper_token": (_only(True), "planners without a gripper token have the older layout: see token_layout"),
    "record_step_states": (_boolean, "true or false; record says what is kept of each step"),
    "collect_jpeg_quality": (_whole, "a whole number; videos are rendered from the recorded states"),
    **dict.fromkeys(("diagnostics_file", "step_states_file", "collect_dir"), (_text, "it must be a path")),
}
# Keys of files that the training code's evaluators write: where a run keeps their content.
_KEPT_ELSEWHERE: Mapping[str, str] = {
    "diagnostics_file": "decisions.parquet and the report hold the diagnostics",
    "step_states_file": "trajectories/ holds every step",
    "collect_dir": "trajectories/ holds every step, and python -m wpray.export writes a data set",
}
# Keys that change which trials run, by what a run has instead.
_REFUSED: Mapping[str, str] = {
    "existing_results_file": "not read here, because a run resumes from its own parts: leave it out, and give "
    "trial_start to skip trials"
}
# Keys of waypoint_decode that only change how the same plan is computed.
_DECODE_INERT: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("compact_logits", "pack_forced_tokens", "early_stop", "respect_prefix_pad", "profile"), _boolean),
    "jacobi_max_iters": _whole,
}
_RENAMED = {"max_steps_override": "env.max_steps", "disable_video": "video.mode"}
_DECODE_MEANT = ("forbid_terminal_first_waypoint", "temperature")


def flatten(data: Mapping[str, Any], known: Callable[[str], str | None]) -> dict[str, Any]:
    """Return a YAML's mapping without `eval`, `waypoint_decode` and keys that have no effect here.

    The section `eval`, unless null, takes precedence over the same key outside of it. `known(name)` returns what is
    wrong with a name, None if it is a setting. Raises BadInputError, naming the key, for what is not understood.
    """
    flat = {name: value for name, value in data.items() if name != _SECTION}
    section = data.get(_SECTION)
    if section is not None:
        flat |= _of_section(section, known)
    for name, remedy in _REFUSED.items():
        if flat.get(name) is not None:
            raise BadInputError(f"{name}: {remedy}")
    flat = _renamed(_without_inert({name: flat[name] for name in flat if name not in _REFUSED}, known))
    return _with_planner(*_split_decode(flat))


def _of_section(section: Any, known: Callable[[str], str | None]) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise BadInputError(f"{_SECTION}: must hold settings, not {shown(str(section))}")
    for name in map(str, section):
        of_decode = name.partition(".")[0] == _DECODE or name.startswith(f"{_DECODE}_")
        own = of_decode or name in (*_INERT, *_RENAMED, *_REFUSED)
        wrong = None if own else known(name)
        if wrong is not None:
            raise BadInputError(f"{_SECTION}.{name}: {wrong}")
    return {str(name): value for name, value in section.items() if value is not None}


def _without_inert(data: Mapping[str, Any], known: Callable[[str], str | None]) -> dict[str, Any]:
    inert = {name: rule for name, rule in _INERT.items() if known(name) is not None}
    for name, (fits, remedy) in inert.items():
        value = data.get(name)
        if value is not None and not fits(value):
            raise BadInputError(f"{name}: {shown(str(value))} is not understood: {remedy}")
        if value is not None and name in _KEPT_ELSEWHERE:
            _warn_once(f"{name}: no such file is written, because {_KEPT_ELSEWHERE[name]}")
    return {name: value for name, value in data.items() if name not in inert}


@functools.cache  # because a command may read its file several times
def _warn_once(text: str) -> None:
    _LOG.warning(text)


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with wpray's names for those that the training code names otherwise."""
    flat = {name: value for name, value in data.items() if name not in _RENAMED}
    for name, meant in _RENAMED.items():
        value = data.get(name)
        if value is None:
            continue
        if name == "disable_video" and not _boolean(value):
            raise BadInputError(f"{name}: {shown(str(value))} is neither true nor false")
        if value is not False:
            flat[meant] = "none" if value is True else value
    return flat


def _split_decode(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (other settings, settings of waypoint_decode), which may be nested or flat with that prefix."""
    nested = data.get(_DECODE)
    if nested is not None and not isinstance(nested, Mapping):
        raise BadInputError(f"{_DECODE}: must hold settings, not {shown(str(nested))}")
    prefix = f"{_DECODE}_"
    decode = {name.removeprefix(prefix): value for name, value in data.items() if name.startswith(prefix)}
    decode |= {str(name): value for name, value in (nested or {}).items() if value is not None}
    others = {name: value for name, value in data.items() if name != _DECODE and not name.startswith(prefix)}
    return others, {name: value for name, value in decode.items() if value is not None}


def _with_planner(data: dict[str, Any], decode: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the meaning of `decode`. Raises BadInputError for wrong or contradictory keys."""
    for name, value in decode.items():
        if name not in ("impl", *_DECODE_MEANT, *_DECODE_INERT):
            names = ", ".join(("impl", *_DECODE_MEANT, *_DECODE_INERT))
            raise BadInputError(f"{_DECODE}.{name}: unknown; its keys are {names}")
        if name in _DECODE_INERT and not _DECODE_INERT[name](value):
            raise BadInputError(f"{_DECODE}.{name}: {shown(str(value))} is no value of it")
    flat = dict(data)
    for name in _DECODE_MEANT:
        if name in decode and flat.setdefault(name, decode[name]) != decode[name]:
            raise BadInputError(f"{_DECODE}.{name}: {decode[name]} contradicts {name}: {flat[name]}; keep one of them")
    if "impl" in decode:
        _note_planner(flat, decode)
    return flat


def _note_planner(flat: dict[str, Any], decode: Mapping[str, Any]) -> None:
    impl = decode["impl"]
    if not isinstance(impl, str) or impl not in _IMPLEMENTATIONS:
        raise BadInputError(f"{_DECODE}.impl: {shown(str(impl))}; it is one of {', '.join(_IMPLEMENTATIONS)}")
    if impl == "jacobi" and decode.get("temperature"):
        raise BadInputError(f"{_DECODE}.impl: jacobi finds the best plan only; leave temperature out")
    planner = _IMPLEMENTATIONS[impl]
    if flat.get("planner_mode") not in (None, "auto", planner):
        raise BadInputError(f"{_DECODE}.impl: {impl} belongs to planner_mode {planner}, not {flat['planner_mode']}")
    flat["planner_mode"] = planner
