"""What a check says: one line, and the remedy with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from wpray.config import Config
from wpray.errors import BadInputError

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a check."""

    name: str
    status: Status
    message: str
    remedy: str = ""  # a command or a setting

    @property
    def text(self) -> str:
        """Message and remedy, in one line."""
        parts = [self.message, self.remedy] if self.remedy else [self.message]
        return " ".join("; ".join(parts).split())

    @classmethod
    def of_error(cls, name: str, error: BadInputError) -> Result:
        """A failed check whose error names the remedy."""
        return cls(name, "fail", str(error))


# An empty list: the check does not apply to this configuration.
Check = Callable[[Config], list[Result]]


def carry_out(name: str, check: Check, config: Config) -> list[Result]:
    """The check's results; what it raises because of the user's files or machine is a failure."""
    try:
        return check(config)
    except BadInputError as error:
        return [Result.of_error(name, error)]
    except OSError as error:
        return [Result(name, "fail", f"{type(error).__name__}: {error}")]
