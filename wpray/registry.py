"""Registry of policies and benchmarks: built in, installed with an entry point, or given by their import path."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, packages_distributions
from typing import Any, TypeVar

from wpray import errors
from wpray.errors import BadInputError, wrapping_errors

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Registry:
    """Registry of one kind of parts, such as policies. A part is a module, or a name in one, and is imported late."""

    setting: str  # name of the setting that selects the part, for messages
    group: str  # group of the entry points that install more parts
    built_in: Mapping[str, str]  # name -> PACKAGE.MODULE or PACKAGE.MODULE:NAME
    light: Mapping[str, str] = field(default_factory=dict)  # name -> module to read instead before the part is used
    flat: Mapping[str, str] = field(default_factory=dict)  # name -> module that checks its settings in no group
    extras: Mapping[str, str] = field(default_factory=dict)  # name -> wpray's extra with the packages that it needs

    def names(self) -> tuple[str, ...]:
        """Return the names of all installed parts, the built-in ones first."""
        return tuple(dict.fromkeys([*self.built_in, *sorted(entry.name for entry in self._installed())]))

    def load(self, name: str) -> Any:
        """Return the part that `name` means. A built-in name counts before an installed one.

        Raises BadInputError for an unknown name, naming the nearest one, and for what cannot be imported.
        """
        target = self.built_in.get(name) or self._entry(name)
        if target is not None:
            return self._imported(name, target)
        if "." in name or ":" in name:
            return self._imported(name, name)
        known = self.names()
        hint = nearest(name, known)
        hint = f"did you mean {hint}?" if hint else f"use one of {', '.join(known)}"
        raise BadInputError(f"{self.setting}: unknown {self.setting} {name!r}; {hint} (or PACKAGE.MODULE:CLASS)")

    def declaration(self, name: str) -> Any:
        """Return what says all that is read of a part before it is used: its light module if it has one, else itself.

        Raises BadInputError as `load` does.
        """
        return import_module(self.light[name]) if name in self.light else self.load(name)

    def flat_settings(self, name: str) -> Any:
        """Return what checks those settings at the configuration's top level that belong to the part `name`."""
        return import_module(self.flat[name])

    def call(self, name: str, what: str, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Return `function(*arguments)`, of the part `name`; `what` names the function in messages.

        Raises BadInputError for whatever it raises, an exit of the process included, because the code is a user's.
        """
        as_bad_input = partial(self._failing, name, what)
        with wrapping_errors(as_bad_input, BadInputError, KeyboardInterrupt, caught=BaseException):
            return function(*arguments)

    def lacking(self, name: str, error: ModuleNotFoundError) -> BadInputError:
        """Return the error for a part that imports a package that is not installed, naming wpray's extra for it."""
        extra = self.extras.get(name)
        hint = f"pip install 'wpray[{extra}]'" if extra else "install it or set PYTHONPATH"
        return BadInputError(f"{self.setting}: cannot import {name} ({error}); {hint}")

    def provider(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the package of another's part and the distributions that may have it, without importing it.

        None for a part that comes with wpray, and for an unknown name.
        """
        if name in self.built_in:
            return None
        entries = [entry for entry in self._installed() if entry.name == name]
        package = (entries[0].value if entries else name).partition(":")[0].partition(".")[0].strip()
        if not package or package == __name__.partition(".")[0] or not (entries or "." in name or ":" in name):
            return None
        owners = [entry.dist.name for entry in entries if entry.dist] or packages_distributions().get(package, [])
        return package, tuple(dict.fromkeys(owners))

    def _failing(self, name: str, what: str, error: BaseException) -> BadInputError:
        text = " ".join(str(error).split())[:300]
        said = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return BadInputError(f"{self.setting}: {what} of {name} fails ({said}{_place_of(error)}); mend the module")

    def _installed(self) -> Iterable[EntryPoint]:
        return entry_points(group=self.group)

    def _entry(self, name: str) -> str | None:
        """Return where the installed part `name` is. Raises BadInputError if packages disagree on that."""
        found = {entry.value: entry for entry in self._installed() if entry.name == name}
        if len(found) > 1:
            owners = " and ".join(sorted(entry.dist.name if entry.dist else "?" for entry in found.values()))
            raise BadInputError(f"{self.setting}: {name} is installed by {owners}; give PACKAGE.MODULE:CLASS instead")
        return next(iter(found), None)

    def _imported(self, name: str, target: str) -> Any:
        module_name, colon, attributes = (text.strip() for text in target.partition(":"))
        if not all(module_name.split(".")) or (colon and not all(attributes.split("."))):
            form = "PACKAGE.MODULE or PACKAGE.MODULE:CLASS"
            raise BadInputError(f"{self.setting}: cannot import {name}, which is no module's name; write {form}")
        part: Any = self.call(name, "the import", self._import, name, module_name)
        for attribute in attributes.split(".") if colon else ():
            part = self._attribute(part, attribute, module_name)
        return part

    def _import(self, name: str, module_name: str) -> Any:
        try:
            return import_module(module_name)
        except ModuleNotFoundError as error:
            raise self.lacking(name, error) from error

    def _attribute(self, part: Any, attribute: str, module_name: str) -> Any:
        if not hasattr(part, attribute):
            near = nearest(attribute, [known for known in dir(part) if not known.startswith("_")])
            hint = f"; did you mean {near}?" if near else ""
            raise BadInputError(f"{self.setting}: {module_name} has no {attribute}{hint}")
        return getattr(part, attribute)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `name` may be a misspelling of; None if none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)), None)


def _place_of(error: BaseException) -> str:
    """Return the place in the part's own files that raised; a syntax error names its own."""
    if isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    return f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_machinery(file: str) -> bool:
    return file in (__file__, errors.__file__) or file.startswith("<frozen ")


# The benchmarks' registry is in their room. This one is here because the configuration reads it, too.
POLICIES = Registry(
    "policy",
    "wpray.policies",
    {
        "scripted": "wpray.policies.scripted.policy",
        "noop": "wpray.policies.noop",
        "random": "wpray.policies.random_policy",
        "waypoint_vla": "wpray.policies.waypoint_vla.policy",
        "openpi": "wpray.policies.remote.openpi:OpenpiPolicy",
        "openvla_oft": "wpray.policies.remote.openvla_oft:OpenvlaOftPolicy",
        "vla_eval": "wpray.policies.remote.vla_eval:VlaEvalPolicy",
        "gr00t": "wpray.policies.remote.gr00t:Gr00tPolicy",
        "starvla": "wpray.policies.remote.starvla:StarvlaPolicy",
        "process": "wpray.policies.process.policy:ProcessPolicy",
        "pi0": "wpray.policies.pi0.policy",
    },
    light={  # because the policies' own modules import torch
        "waypoint_vla": "wpray.policies.waypoint_vla.declaration",
        "pi0": "wpray.policies.pi0.declaration",
    },
    flat={"waypoint_vla": "wpray.policies.waypoint_vla.flat_settings"},
    extras={
        "waypoint_vla": "vla",
        "pi0": "hf",
        **dict.fromkeys(("openpi", "openvla_oft", "vla_eval", "gr00t", "starvla", "process"), "remote"),
    },
)
