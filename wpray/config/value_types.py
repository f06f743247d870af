"""Types of settings' values: how task ids, suites, step limits and paths are read from YAML and the command line."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, TypeAdapter, ValidationError, ValidationInfo

from wpray.benchmarks.factory import DEFAULT_SUITE, canonical_suite, expanded_suites, installed
from wpray.system.paths import check_name

Auto = Literal["auto"]
Checked = TypeVar("Checked")
_SUITE_NAME = re.compile(r"[A-Za-z0-9_]{1,100}")


def _expand_ranges(value: Any) -> Any:
    """Accept task ids as `3`, `0,3,5` or `0-4`, on the command line and in YAML."""
    items = value if isinstance(value, list) else [value]
    expanded: list[Any] = []
    for item in items:
        for part in item.strip("[] ").split(",") if isinstance(item, str) else [item]:
            expanded.extend(_expand_range(part))
    return expanded


def _expand_range(part: Any) -> list[Any]:
    first, dash, last = part.strip().partition("-") if isinstance(part, str) else ("", "", "")
    if dash and first.isdecimal() and last.isdecimal() and 0 <= int(last) - int(first) < 1000:
        return list(range(int(first), int(last) + 1))
    return [part]


def _by_suite(value: Any, info: ValidationInfo) -> Any:
    """Read `libero_goal:0-4,libero_10:3`, in which ids without a suite belong to the one before."""
    if isinstance(value, dict):
        return {canonical_name(str(suite), info): _checked(_TASK_IDS, suite, ids) for suite, ids in value.items()}
    if not isinstance(value, str | list) or not any(":" in item for item in _parts(value) if isinstance(item, str)):
        return value
    found: dict[str, list[Any]] = {}
    suite = ""
    for item in _parts(value):
        name, colon, ids = item.partition(":") if isinstance(item, str) else ("", "", item)
        suite = name.strip() if colon else suite
        if not suite:
            raise ValueError("the first ids have no suite; write SUITE:IDS, such as libero_goal:0-4,libero_10:3")
        found.setdefault(canonical_name(suite, info), []).append(ids if colon else item)
    return {suite: _checked(_TASK_IDS, suite, ids) for suite, ids in found.items()}


def canonical_name(suite: str, info: ValidationInfo) -> str:
    """Return the suite's own name, whichever of its names is given; `info` names the benchmark."""
    return canonical_suite(suite, info.data.get("benchmark", "auto"))


def _checked(kind: TypeAdapter[Checked], suite: Any, value: Any) -> Checked:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{suite}: {error.errors()[0]['msg']}") from error


StepLimit = Annotated[PositiveInt, Field(le=100_000)]
_STEP_LIMIT: TypeAdapter[int] = TypeAdapter(StepLimit)


def _limits_by_suite(value: Any) -> Any:
    """Read `libero_goal:300,libero_10:600`."""
    if isinstance(value, dict):
        return {str(suite).strip(): _checked(_STEP_LIMIT, suite, steps) for suite, steps in value.items()}
    if not isinstance(value, str | list) or not any(":" in item for item in _parts(value) if isinstance(item, str)):
        return value
    pairs = [item.partition(":") if isinstance(item, str) else ("", "", item) for item in _parts(value)]
    if not all(colon and suite.strip() for suite, colon, _ in pairs):
        raise ValueError("write SUITE:STEPS for each suite, such as libero_goal:300,libero_10:600")
    return _limits_by_suite({suite: steps for suite, _, steps in pairs})


def _benchmark_name(name: str) -> str:
    if name not in installed():
        raise ValueError(f"there is no benchmark {name!r}; use one of {', '.join(installed())}")
    return name


BenchmarkName = Annotated[str, AfterValidator(_benchmark_name)]


def _parts(value: Any) -> list[Any]:
    items = value if isinstance(value, list) else [value]
    return [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]


def _named_suites(value: Any, info: ValidationInfo) -> Any:
    """Take one suite or several (a list, or separated by commas), and groups of suites; a single one stays a text."""
    if isinstance(value, str | list) and all(isinstance(item, str) for item in _parts(value)):
        names = expanded_suites(_parts(value), info.data.get("benchmark", "auto"))
        if not names:
            raise ValueError(f"names no suite; leave it out for {DEFAULT_SUITE}")
        for name in names:
            if not _SUITE_NAME.fullmatch(name):
                raise ValueError(f"{name[:40]!r} is no suite's name, which has letters, digits and _")
        return names[0] if len(names) == 1 else names
    return value


TaskIds = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_expand_ranges)]


_TASK_IDS: TypeAdapter[list[int]] = TypeAdapter(TaskIds)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must be a file name; leave it out for the default")
    return text


FILE_NAME = AfterValidator(check_name)
FilePath = Annotated[str, FILE_NAME]  # fields of this type are listed by `path_fields`
OutputPath = Annotated[
    str, FILE_NAME, AfterValidator(_not_blank)
]  # not blank, because the working directory would be filled
ActorCount = Annotated[PositiveInt, Field(le=10_000)]  # five times the largest number that the driver was measured with


def without_booleans(value: Any) -> Any:
    """Refuse `true` for a number, because pydantic would read it as 1."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    if any(isinstance(item, bool) for item in items):
        raise ValueError("must not be true or false")
    return value


SuiteNames = Annotated[str | list[str], BeforeValidator(_named_suites)]
TasksOfSuites = Annotated[TaskIds | dict[str, TaskIds], BeforeValidator(_by_suite)]
StepLimits = Annotated[StepLimit | dict[str, StepLimit], BeforeValidator(_limits_by_suite)]
PolicyArgs = dict[str, Any]  # the policy's own settings, which it validates itself
