"""Names of LIBERO's suites, their step limits, and where the instructions of their tasks come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from wpray.benchmarks.base import InstructionSetting, InstructionSource
from wpray.benchmarks.names import is_or_varies, normalized

# Control steps after the wait steps, as the LIBERO literature counts them, of the suites that LIBERO itself has.
BASE_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
GROUPS = {"libero_all": ("libero_spatial", "libero_object", "libero_goal", "libero_10")}
PRO = "libero_pro"
AXES = ("lan", "object", "swap", "task")  # words, objects, places, goal: those whose files were published
OTHER_NAMES = {"libero_long": "libero_10"}
_NAMED_IN_DATA_SETS = re.compile(r"_libero_(?:spatial|object|goal|10|90|100)_")
_DATA_SET_SUFFIX = "_no_noops"  # of the training data's name in RLDS


def canonical(name: str) -> str:
    """Return the name under which LIBERO registers the suite that people call `name`.

    Case does not matter, hyphens and spaces between words are underscores, `libero_long` is `libero_10`, and the
    `_no_noops` of a data set's name is dropped.
    """
    joined = normalized(name).removesuffix(_DATA_SET_SUFFIX)
    for other, known in OTHER_NAMES.items():
        if is_or_varies(joined, other):
            return known + joined.removeprefix(other)
    return joined


def expanded(names: Iterable[str]) -> list[str]:
    """Return canonical names, each once, with the suites of a group in its place.

    Groups are libero_all, libero_pro (four suites perturbed along four axes) and libero_pro:AXIS, after which further
    axes may follow. Raises ValueError for an unknown axis.
    """
    found: list[str] = []
    axes = False  # the names that follow may be axes
    for name in names:
        group, colon, axis = name.partition(":")
        known = canonical(group)
        axes = (axes and not colon and known in AXES) or (known == PRO and bool(colon))
        if axes or known == PRO:
            found += _perturbed(axis if colon else known)
        else:
            found += GROUPS.get(known, (canonical(name),))
    return list(dict.fromkeys(found))


def fits_data_set(suite: str, data_set: str) -> bool:
    """Return True if a data set's name is the suite's, its base suite's, or that of a mixture of LIBERO suites."""
    if not suite.startswith("libero"):
        return True  # an unknown suite, which is refused elsewhere
    words, base = f"_{data_set}_", _NAMED_IN_DATA_SETS.match(f"_{suite}_")
    if f"_{suite}_" in words or (base and base.group() in words):
        return True
    return "libero" in words and not _NAMED_IN_DATA_SETS.search(words)


def axis_of(suite: str) -> tuple[str, str] | None:
    """Return (base suite, axis) of a suite of LIBERO-PRO: libero_goal_lan perturbs libero_goal along lan."""
    base, _, axis = suite.rpartition("_")
    return (base, axis) if base in GROUPS["libero_all"] and axis in AXES else None


def _perturbed(axis: str) -> list[str]:
    axes = AXES if canonical(axis) == PRO else (canonical(axis),)
    if axes[0] not in AXES:
        raise ValueError(f"{PRO} has the axes {', '.join(AXES)}, not {axis[:40]!r}")
    return [f"{base}_{axis}" for axis in axes for base in GROUPS["libero_all"]]


def group_name(names: Sequence[str]) -> str:
    """Return one name for several suites: their group's, or all names joined."""
    groups = {**GROUPS, PRO: tuple(_perturbed(PRO)), **{f"{PRO}_{axis}": tuple(_perturbed(axis)) for axis in AXES}}
    return next((group for group, its in groups.items() if set(its) == set(names)), "-".join(names))


def base_of(suite: str) -> str | None:
    """Return LIBERO's own suite that `suite` is or varies: libero_goal for libero_goal_lan; None if there is none."""
    return next((base for base in BASE_STEPS if is_or_varies(suite, base)), None)


def instruction_source(suite: str, setting: InstructionSetting) -> InstructionSource:
    """Return where the instruction of the suite's tasks comes from, as `env.instruction` says.

    `auto`: LIBERO's own suites were trained with the words of the file names, which differ from their BDDL's. Every
    other suite is described by its BDDL: LIBERO-PRO's variants keep the file names of what they perturb.
    """
    if setting != "auto":
        return setting
    return "file_name" if suite in BASE_STEPS else "bddl"
