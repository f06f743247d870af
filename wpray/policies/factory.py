"""Policy name -> policy. Imports a policy's module only when it is asked for: a scripted run never imports torch."""

from __future__ import annotations

import contextlib
import difflib
import math
import traceback
from collections.abc import Iterator
from importlib import import_module
from numbers import Integral, Real
from types import ModuleType
from typing import cast

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import Policy, PolicySpec

# name -> (module with `spec_of(config) -> PolicySpec` and `build(config) -> Policy`)
_BUILT_IN = {
    "scripted": "wpray.policies.scripted.policy",
    "noop": "wpray.policies.noop",
    "random": "wpray.policies.random_policy",
    "waypoint_vla": "wpray.policies.waypoint_vla.policy",
}
_LIGHT_SPECS = {"waypoint_vla": "wpray.policies.waypoint_vla.spec"}  # where the policy's own module imports torch


def policy_spec(config: Config) -> PolicySpec:
    """Return what the configured policy needs of the harness, without building it.

    Raises BadInputError for an unknown policy, and for a module that cannot be imported or has no sound `spec_of`.
    """
    light = _LIGHT_SPECS.get(config.policy)
    module = import_module(light) if light else _module(config.policy)
    with _blaming(config.policy, "spec_of"):
        spec = module.spec_of(config)
    wrong = _wrong_with(spec)
    if wrong:
        raise BadInputError(f"policy: spec_of of {config.policy} must return a PolicySpec, {wrong}")
    return cast(PolicySpec, spec)


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
    if not all(name.split(".")):
        raise BadInputError(f"policy: cannot import {name}, which is no module's name; write PACKAGE.MODULE")
    with _blaming(name, "the import"):
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            raise BadInputError(f"policy: cannot import {name} ({error}); install it or set PYTHONPATH") from error
    missing = [function for function in ("spec_of", "build") if not callable(getattr(module, function, None))]
    if missing:
        raise BadInputError(f"policy: {name} has no {missing[0]}; a policy module has spec_of and build")
    return module


@contextlib.contextmanager
def _blaming(name: str, what: str) -> Iterator[None]:
    """Raise BadInputError for whatever a policy's own code raises, an exit of the process included."""
    try:
        yield
    except (BadInputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        text = " ".join(str(error).split())[:300]
        said = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise BadInputError(f"policy: {what} of {name} fails ({said}{_where(error)}); mend the module") from error


def _where(error: BaseException) -> str:
    """Return the place in the policy's own files that raised; a syntax error says its own."""
    if isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    return f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_machinery(file: str) -> bool:
    return file == __file__ or file.startswith("<frozen ")


def _wrong_with(spec: object) -> str:
    """Return what is wrong with what `spec_of` has returned, or ''."""
    if not isinstance(spec, PolicySpec):
        return f"not {type(spec).__name__}"
    whole = isinstance(spec.max_batch_size, Integral) and spec.max_batch_size >= 1
    if not whole:
        return f"with a max_batch_size of 1 or more, not {spec.max_batch_size!r}"
    share = spec.num_gpus
    if not isinstance(share, Real) or not 0 <= share < math.inf:
        return f"with num_gpus of 0 or more, not {share!r}"
    return ""
