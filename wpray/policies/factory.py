"""Construction of policies by name. A policy's module is imported when needed, so a scripted run imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import AnyPolicy, PolicyCheck, PolicySpec, WaypointUnits
from wpray.policies.settings import GROUP, deciding_settings, given_settings, read_settings
from wpray.registry import POLICIES

_METHODS = {"waypoints": ("plan", "act"), "chunk": ("predict",)}  # of each kind of policy
_FORM = "a policy is a class with spec or spec_of, or a module with spec_of and build"


def policy_spec(config: Config) -> PolicySpec:
    """Return the spec of the configured policy without building it.

    Raise BadInputError for an unknown policy, for one that cannot be imported or has no sound spec, and for
    `policy_args` that are not its settings.
    """
    return _loaded(config).spec()


def policy_checks(config: Config) -> tuple[PolicyCheck, ...]:
    """Return the doctor's checks that the configured policy brings. Raise BadInputError as `policy_spec` does."""
    return _loaded(config).checks()


def waypoint_units(config: Config) -> WaypointUnits | None:
    """Return the units of the configured policy's waypoints; None if it declares none. Raise as `policy_spec` does."""
    return _loaded(config).units()


def build_policy(config: Config) -> AnyPolicy:
    """Return the configured policy, ready to answer (a learned one has loaded its weights).

    Raise BadInputError for an unknown name, and whatever is wrong with its files.
    """
    return _loaded(config, light=False).build()


def spec_of_object(policy: Any) -> PolicySpec:
    """Return the spec of a policy that is an object already. Raises BadInputError if it is no policy."""
    kind, spec = type(policy).__name__, getattr(policy, "spec", None)
    if not isinstance(spec, PolicySpec):
        raise BadInputError(f"policy: {kind} has no spec, a wpray.policies.base.PolicySpec; give it one")
    if wrong := spec_mistake(spec):
        raise BadInputError(f"policy: the spec of {kind} must be one {wrong}")
    missing = [method for method in _METHODS[spec.kind] if not callable(getattr(policy, method, None))]
    if missing:
        raise BadInputError(f"policy: {kind} is of kind {spec.kind!r} but has no method {missing[0]}; write it")
    return spec


def with_policy_args(config: Config) -> Config:
    """Return `config` with `policy_args` validated by the policy's own settings; those equal to defaults are left out.

    Raise BadInputError as `policy_spec` does.
    """
    settings = _loaded(config).settings
    return config if settings is None else config.model_copy(update={GROUP: given_settings(settings)})


def all_policy_args(config: Config) -> dict[str, Any]:
    """Return every setting of the configured policy with the value it has in this run, as JSON holds it."""
    settings = _loaded(config).settings
    return {} if settings is None else settings.model_dump(mode="json")


def deciding_policy_args(config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the given settings that an outcome of the configured policy may depend on.

    Raise BadInputError if the policy cannot be loaded.
    """
    model = settings_model(config.policy) if given else None
    return dict(given) if model is None else deciding_settings(model, given)


def settings_model(name: str) -> type[BaseModel] | None:
    """Return the model of the settings of the policy `name`; None if it has none. Raise BadInputError as usual."""
    model = getattr(_part(name, light=True), "Settings", None)
    if model is None:
        return None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise BadInputError(f"policy: Settings of {name} must be a pydantic BaseModel, not {model!r:.60}")
    return model


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Module or class of a policy, with its configuration."""

    part: Any
    config: Config
    settings: BaseModel | None

    @property
    def name(self) -> str:
        return self.config.policy

    def spec(self) -> PolicySpec:
        function = getattr(self.part, "spec_of", None)
        if callable(function):
            said, spec = "spec_of", POLICIES.call(self.name, "spec_of", function, *self._arguments)
        else:
            said, spec = "spec", getattr(self.part, "spec", None)
        wrong = spec_mistake(spec) or self._lacks_methods(spec)
        if wrong:
            verb = "must return" if said == "spec_of" else "must be"
            raise BadInputError(f"policy: {said} of {self.name} {verb} a PolicySpec, {wrong}")
        return self._with_checkpoints(cast(PolicySpec, spec))

    def _with_checkpoints(self, spec: PolicySpec) -> PolicySpec:
        """Return a spec that names no checkpoint with those of the flat settings, which a module may read."""
        if spec.checkpoints:
            return spec
        named = (POLICIES.flat_settings(name).checkpoints(self.config) for name in POLICIES.flat)
        return replace(spec, checkpoints=next((found for found in named if found), {}))

    def checks(self) -> tuple[PolicyCheck, ...]:
        function = getattr(self.part, "doctor_checks", None)
        if not callable(function):
            return ()
        found = tuple(POLICIES.call(self.name, "doctor_checks", function, *self._arguments))
        if not all(isinstance(check, PolicyCheck) for check in found):
            raise BadInputError(f"policy: doctor_checks of {self.name} must return PolicyChecks, not {found!r:.60}")
        return found

    def units(self) -> WaypointUnits | None:
        """Return the declared units; without a declaration those of the flat settings, which a module may read."""
        function = getattr(self.part, "waypoint_units", None)
        if not callable(function):
            declared = (POLICIES.declaration(name).waypoint_units(self.config) for name in POLICIES.flat)
            return next((units for units in declared if units is not None), None)
        units = POLICIES.call(self.name, "waypoint_units", function, *self._arguments)
        if not isinstance(units, WaypointUnits | None):
            raise BadInputError(f"policy: waypoint_units of {self.name} must return WaypointUnits, not {units!r:.60}")
        return units

    def build(self) -> AnyPolicy:
        if isinstance(self.part, ModuleType):
            return cast(AnyPolicy, self.part.build(self.config))
        spec, policy = self.spec(), self.part(*self._arguments)
        if not hasattr(policy, "spec"):
            policy.spec = spec
        return cast(AnyPolicy, policy)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        """Arguments of the constructor: the whole configuration for a module, its settings for a class."""
        if isinstance(self.part, ModuleType):
            return (self.config,)
        return () if self.settings is None else (self.settings,)

    def _lacks_methods(self, spec: PolicySpec) -> str:
        missing = [method for method in _METHODS[spec.kind] if not callable(getattr(self.part, method, None))]
        if isinstance(self.part, ModuleType) or not missing:
            return ""
        return f"and one of kind {spec.kind!r} asks for the method {missing[0]}, which the class lacks"


def _loaded(config: Config, light: bool = True) -> _Loaded:
    name, model = config.policy, settings_model(config.policy)
    if model is None and config.policy_args:
        raise BadInputError(f"policy_args.{next(iter(config.policy_args))}: policy {name} has no settings of its own")
    settings = None if model is None else POLICIES.call(name, GROUP, read_settings, model, config.policy_args)
    return _Loaded(_part(name, light), config, settings)


def _part(name: str, light: bool) -> Any:
    """Return a policy's module or class; with `light`, a module that has its spec and imports little."""
    if light and name in POLICIES.light:
        return POLICIES.declaration(name)
    part = POLICIES.load(name)
    if isinstance(part, ModuleType):
        missing = [function for function in ("spec_of", "build") if not callable(getattr(part, function, None))]
    else:
        missing = [] if isinstance(part, type) and _has_spec(part) else ["spec or spec_of"]
    if missing:
        raise BadInputError(f"policy: {name} has no {missing[0]}; {_FORM}")
    return part


def _has_spec(part: type) -> bool:
    return callable(getattr(part, "spec_of", None)) or hasattr(part, "spec")


def spec_mistake(spec: object) -> str:
    """Return what is wrong with a policy's spec, or ''."""
    if not isinstance(spec, PolicySpec):
        return f"not {type(spec).__name__}"
    whole = isinstance(spec.max_batch_size, Integral) and spec.max_batch_size >= 1
    if not whole:
        return f"with a max_batch_size of 1 or more, not {spec.max_batch_size!r}"
    if spec.kind not in _METHODS:
        return f"with a kind of {' or '.join(_METHODS)}, not {spec.kind!r}"
    if not isinstance(spec.execute_steps, Integral) or spec.execute_steps < 0:
        return f"with execute_steps of 0 or more, not {spec.execute_steps!r}"
    share = spec.num_gpus
    if not isinstance(share, Real) or not 0 <= share < math.inf:
        return f"with num_gpus of 0 or more, not {share!r}"
    return ""
