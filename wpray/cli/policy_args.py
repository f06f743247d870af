"""A policy's own settings on the command line: `--policy_args.NAME VALUE`, and their part of `--policy NAME --help`.

The values stay text here. The policy's own model reads them once its module may be imported: after the environment
variables are set that numpy, torch and Ray read at import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wpray.cli.parser import ArgumentParser
from wpray.errors import BadInputError
from wpray.registry import POLICIES

_PREFIX = "--policy_args."


def split_policy_args(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return `argv` without the policy's settings, and these by name, nested where a name has dots.

    Raises BadInputError for one without a value, and for one that is given twice.
    """
    rest: list[str] = []
    given: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith(_PREFIX):
            rest.append(word)
            continue
        option, equals, value = word.partition("=")
        if not equals:
            value = next(words, "--")
        if value.startswith("--") and not equals:
            raise BadInputError(f"argument {option}: expected one argument (see --help)")
        _put(given, option, None if value == "null" else value)
    return rest, given


def add_policy_help(parser: ArgumentParser, policy: str | None) -> None:
    """Add the settings of `policy`, if it has any, to what `--help` prints."""
    if policy is None:
        return
    from wpray.policies.factory import settings_model
    from wpray.policies.settings import setting_helps

    model = settings_model(policy)
    if model is None:
        own = "the settings above that are in no group" if policy in POLICIES.flat else "no settings of its own"
        parser.epilog = f"The policy {policy} has {own}."
        return
    group = parser.add_last_group(f"settings of the policy {policy}", (model.__doc__ or "").strip() or None)
    for setting in setting_helps(model):
        text = setting.text.replace("%", "%%")
        group.add_argument(f"--{setting.name}", metavar=setting.kind.replace("%", "%%"), help=text)


def _put(given: dict[str, Any], option: str, value: str | None) -> None:
    *groups, name = option.removeprefix(_PREFIX).split(".")
    for group in groups:
        given = given.setdefault(group, {})
        if not isinstance(given, dict):
            raise BadInputError(f"{option}: is given beside {_PREFIX}{group}; give its fields")
    if name in given:
        raise BadInputError(f"{option}: is given twice; keep one of them")
    given[name] = value
