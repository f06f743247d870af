"""Declarations of a benchmark as run.json holds them; runs that hold none have an arm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wpray.errors import DamagedRunError
from wpray.types import ARM_COLUMNS, EEF_ACTION, ActionSpec, StateColumn

_ACTION = TypeAdapter(ActionSpec)
_COLUMNS = TypeAdapter(tuple[StateColumn, ...])


def action_of(info: Mapping[str, Any]) -> ActionSpec:
    """Return the meaning of the actions in trajectories. Raise DamagedRunError if run.json holds something else."""
    found: ActionSpec = _declared(info, "action_spec", _ACTION, EEF_ACTION)
    return found


def state_columns_of(info: Mapping[str, Any]) -> tuple[StateColumn, ...]:
    """Return the benchmark's columns of trajectories. Raise DamagedRunError if run.json holds something else."""
    found: tuple[StateColumn, ...] = _declared(info, "state_columns", _COLUMNS, ARM_COLUMNS)
    return found


def _declared(info: Mapping[str, Any], name: str, kind: TypeAdapter[Any], before: Any) -> Any:
    """Return a declaration, without what a later version has added to it; `before`: where there is none."""
    if info.get(name) is None:
        return before
    try:
        return kind.validate_python(info[name])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise DamagedRunError(f"run.json: {where}: {first['msg']}; name another folder") from error
