"""Policy name -> policy. Imports a policy's module only when it is asked for: a scripted run never imports torch."""

from __future__ import annotations

import difflib
from importlib import import_module
from types import ModuleType
from typing import cast

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policy.base import Policy, PolicySpec

# name -> (module with `spec_of(config) -> PolicySpec` and `build(config) -> Policy`)
_BUILT_IN = {
    "scripted": "wpray.policy.scripted",
    "noop": "wpray.policy.noop",
    "random": "wpray.policy.random_policy",
    "waypoint_vla": "wpray.policy.waypoint_vla",
}


def policy_spec(config: Config) -> PolicySpec:
    """What the configured policy needs of the harness, without building it. Raises BadInputError for an unknown one."""
    return cast(PolicySpec, _module(config.policy).spec_of(config))


def build_policy(config: Config) -> Policy:
    """The configured policy, ready to answer (a learned one has loaded its weights).

    Raises BadInputError for an unknown name, and whatever is wrong with its files.
    """
    return cast(Policy, _module(config.policy).build(config))


def _module(name: str) -> ModuleType:
    """The module of a built-in policy, or `my_package.my_policy` for a user's own with the same two functions."""
    if name in _BUILT_IN:
        return import_module(_BUILT_IN[name])
    if "." in name:
        return _users_own(name)
    near = difflib.get_close_matches(name, _BUILT_IN, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(_BUILT_IN)}"
    raise BadInputError(f"policy: unknown policy {name!r}; {hint} (or a module path with spec_of and build)")


def _users_own(name: str) -> ModuleType:
    try:
        module = import_module(name)
    except (ImportError, TypeError, ValueError) as error:  # the latter two: not a module's name at all
        raise BadInputError(f"policy: cannot import {name} ({error}); install it or set PYTHONPATH") from error
    missing = [function for function in ("spec_of", "build") if not hasattr(module, function)]
    if missing:
        raise BadInputError(f"policy: {name} has no {missing[0]}; a policy module has spec_of and build")
    return module
