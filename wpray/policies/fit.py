"""Comparison of a policy's specification with a benchmark's, before any actor starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import AnyPolicy, PolicySpec
from wpray.policies.factory import policy_spec, spec_of_object
from wpray.types import ActionSpec, ImageSpec, ObservationSpec

_OF_PLANS = ("max_segments_per_replan", "use_actual_proprio", "segment_start_from", "stop_on_d0", "replan_on_deviation")


def fitting_spec(config: Config, live: AnyPolicy | None = None) -> PolicySpec:
    """Return the specification of the configured policy, or of the `live` one.

    Raises BadInputError if it does not fit the benchmark or the settings.
    """
    spec = policy_spec(config) if live is None else spec_of_object(live)
    benchmark = config.load_benchmark()
    for suite in config.suites:
        check_fits(spec, suite, benchmark.observation_spec(suite), benchmark.action_spec(suite))
    check_options(spec, config)
    return spec


def check_fits(spec: PolicySpec, suite: str, shown: ObservationSpec, action: ActionSpec) -> None:
    """Raise BadInputError unless `suite`, which shows `shown` and takes `action`, can be played by the policy.

    A camera's size, turn and crop need not agree, because the environment makes the picture that the policy requires.
    """
    wrong = next(_misfits(spec, shown, action), None)
    if wrong is not None:
        raise BadInputError(f"policy {spec.name} does not fit task_suite {suite}: {wrong}")


def check_options(spec: PolicySpec, config: Config) -> None:
    """Raise BadInputError for a setting of waypoint plans if the policy has none: it would be without effect."""
    if spec.kind == "waypoints":
        return
    for name in _OF_PLANS:
        if getattr(config, name) != Config.model_fields[name].default:
            raise BadInputError(f"{name}: is for policies that plan waypoints, not for {spec.name}; leave it out")


def _misfits(spec: PolicySpec, shown: ObservationSpec, action: ActionSpec) -> Iterator[str]:
    """Yield every mismatch, as the end of a sentence that names both sides."""
    wanted = spec.observation
    for role, view in wanted.cameras.items():
        if role not in shown.cameras:
            yield f"it wants the camera {role}, and the suite has {_listed(shown.cameras)}"
        elif not _is_picture(view):
            yield f"it wants the camera {role} as {view}, which is no picture"
    unknown = [name for name in wanted.proprio if name not in shown.proprio]
    if unknown:
        yield f"it wants {_listed(unknown)} of the robot, and the suite has {_listed(shown.proprio)}"
    if wanted.privileged and not shown.privileged:
        yield "it wants the simulator's state, which the suite does not tell"
    for name in (field.name for field in fields(ActionSpec) if field.compare):
        ours, theirs = getattr(spec.action, name), getattr(action, name)
        if ours != theirs:
            yield f"its actions have {name} {ours}, and the suite's have {name} {theirs}"


def _is_picture(view: ImageSpec) -> bool:
    scale = 1.0 if view.crop_scale is None else view.crop_scale
    return min(view.height, view.width) >= 1 and 0 < scale <= 1


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
