"""Settings of a policy: a pydantic model of its own, filled from `policy_args`."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from wpray.errors import BadInputError
from wpray.registry import nearest

GROUP = "policy_args"


@dataclass(frozen=True, slots=True)
class NoOutcome:
    """Mark of a setting that no outcome depends on, such as a server's address: `url: Annotated[str, NO_OUTCOME]`.

    A run may be resumed with another value of it. run.json records it all the same.
    """


NO_OUTCOME = NoOutcome()


@dataclass(frozen=True, slots=True)
class SettingHelp:
    """One setting as a help text shows it."""

    name: str  # dotted
    kind: str
    text: str  # meaning, with the default


def read_settings(model: type[BaseModel], given: Mapping[str, Any]) -> BaseModel:
    """Return the settings that `given` means; text, as a command line has it, may stand for any value.

    Raise BadInputError for an unknown name, naming the nearest one, and for a missing or wrong value.
    """
    _refuse_unknown(model, given)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        texts = [item["loc"] for item in error.errors(include_url=False) if isinstance(item["input"], str)]
    read = dict(given)
    for location in texts:
        read = _with_value_read(read, location)
    try:
        return model.model_validate(read)
    except ValidationError as error:
        raise BadInputError(_explain(error)) from error


def given_settings(settings: BaseModel) -> dict[str, Any]:
    """Return the settings that differ from their defaults, which distinguish two runs of a policy."""
    return settings.model_dump(exclude_defaults=True)


def deciding_settings(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the given settings that an outcome may depend on: all that are not marked NO_OUTCOME."""
    kept: dict[str, Any] = {}
    for name, value in given.items():
        info = model.model_fields.get(name)
        if info is not None and NO_OUTCOME in info.metadata:
            continue
        kind = None if info is None else info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
            value = deciding_settings(kind, value)
            if not value:
                continue
        kept[name] = value
    return kept


def setting_helps(model: type[BaseModel], prefix: str = f"{GROUP}.") -> Iterator[SettingHelp]:
    """Yield every setting in the order of the model, those of nested models by their dotted names."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_helps(kind, f"{prefix}{name}.")
            continue
        default = "required" if info.is_required() else f"default: {_default(info)}"
        shown = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        yield SettingHelp(f"{prefix}{name}", shown, f"{info.description or ''} ({default})".strip())


def _default(info: Any) -> str:
    value = info.get_default(call_default_factory=False)
    return "made when it is needed" if value is None and info.default is PydanticUndefined else str(value)


def _refuse_unknown(model: type[BaseModel], given: Mapping[str, Any], prefix: str = f"{GROUP}.") -> None:
    """Refuse names that are no fields, because pydantic ignores them by default."""
    if model.model_config.get("extra") == "allow":
        return
    fields = {alias: info for name, info in model.model_fields.items() for alias in (name, info.alias or name)}
    for name, value in given.items():
        if name not in fields:
            near = nearest(name, fields)
            hint = f"did you mean {prefix}{near}?" if near else f"it has {', '.join(fields) or 'no settings'}"
            raise BadInputError(f"unknown key {prefix}{name}: {hint}")
        kind = fields[name].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
            _refuse_unknown(kind, value, f"{prefix}{name}.")


def _with_value_read(given: Mapping[str, Any], location: tuple[int | str, ...]) -> dict[str, Any]:
    """Return `given` with the text at `location` read as YAML; unchanged if it is none or lies elsewhere."""
    if not location or location[0] not in given:
        return dict(given)
    name, value = str(location[0]), given[str(location[0])]
    if isinstance(value, Mapping):
        return {**given, name: _with_value_read(value, location[1:])}
    if not isinstance(value, str):
        return dict(given)
    try:
        return {**given, name: yaml.safe_load(value)}
    except yaml.YAMLError:
        return dict(given)


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join([GROUP, *(str(part) for part in first["loc"])])
    if first["type"] == "missing":
        return f"{name}: is missing, and has no default; give it (see --help with this policy)"
    reason = " ".join(first["msg"].removeprefix("Value error, ").split())
    return f"{name}: {reason}, not {reprlib.repr(first['input'])}"
