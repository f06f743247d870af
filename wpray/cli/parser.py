"""Parser of all commands, whose errors are one line. It does not import pydantic, which is slow."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from wpray.errors import BadInputError


class _HelpFormatter(argparse.HelpFormatter):
    """Help without a default where there is none, because the text then says what happens."""

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r" \(default: (null|None|)\)$", "", super()._expand_help(action))


class ArgumentParser(argparse.ArgumentParser):
    """Parser that raises BadInputError where argparse would print a usage text and exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _HelpFormatter, **options})
        self._last: Any = None

    def add_last_group(self, title: str, description: str | None = None) -> Any:
        """Return a new group, which the help shows after all others: at its end, a terminal shows it."""
        self._last = self.add_argument_group(title, description)
        return self._last

    def format_help(self) -> str:
        """Return the help text."""
        self._action_groups.sort(key=lambda group: group is self._last)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raise BadInputError with argparse's message in one line."""
        found, _, rest = message.partition("unrecognized arguments: ")
        if not found and rest.startswith("--"):
            raise BadInputError(self._unknown(rest.split()[0].lstrip("-").partition("=")[0]))
        raise BadInputError(f"{message} (see --help)")

    def _unknown(self, option: str) -> str:
        own = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        return unknown_key(option, own, prefix="--")


def unknown_key(name: str, names: Sequence[str], prefix: str = "") -> str:
    """Return the line for a key that is none of `names`, naming the nearest one."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    near = near or [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = f"did you mean {prefix}{near[0]}?" if near else "--help lists them all"
    return f"unknown key {prefix}{name}: {hint}"
