"""Result of a check: one line with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from wpray.config import Config
from wpray.errors import BadInputError

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of a check."""

    name: str
    status: Status
    message: str
    remedy: str = ""  # a command or a setting

    @property
    def text(self) -> str:
        """Message and remedy in one line."""
        parts = [self.message, self.remedy] if self.remedy else [self.message]
        return " ".join("; ".join(parts).split())

    @classmethod
    def of_error(cls, name: str, error: BadInputError) -> Result:
        """Return the result of a check that failed with an error that names the remedy."""
        return cls(name, "fail", str(error))


# A check returns an empty list if it does not apply to the configuration.
Check = Callable[[Config], list[Result]]


def carry_out(name: str, check: Check, config: Config) -> list[Result]:
    """Return the check's results. An exception due to the user's files or machine is a failure."""
    try:
        return check(config)
    except BadInputError as error:
        return [Result.of_error(name, error)]
    except OSError as error:
        return [Result(name, "fail", f"{type(error).__name__}: {error}")]
