"""Names of LIBERO-plus's suites: one for each of LIBERO's four suites and each category of perturbation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wpray.benchmarks.libero import suites as libero
from wpray.benchmarks.names import is_or_varies, normalized

PLUS = "libero_plus"
CATEGORIES = ("camera", "robot", "language", "noise", "light", "background", "layout")
OF_BASE_ASSETS = CATEGORIES[:4]  # LIBERO's own assets are enough for them
BASES = libero.GROUPS["libero_all"]
_LIBERO = "libero_"
_ALL_BASES = dict.fromkeys((PLUS, "libero_all"), BASES)


def canonical(name: str) -> str:
    """Return libero_plus_goal_camera for that name and for libero_goal_camera, and LIBERO's names for all others."""
    joined = normalized(name)
    joined = joined.replace(f"{PLUS}_", _LIBERO, 1) if is_or_varies(joined, PLUS) else joined
    base, category = split(libero.canonical(joined))
    return f"{PLUS}_{base.removeprefix(_LIBERO)}_{category}" if base and category else libero.canonical(name)


def split(suite: str) -> tuple[str | None, str | None]:
    """Return (base suite, category) of a suite: libero_goal, camera; (None, None) for a name that is no suite's."""
    base, _, category = suite.replace(f"{PLUS}_", _LIBERO, 1).rpartition("_")
    return (base, category) if base in BASES and category in CATEGORIES else (None, None)


def expanded(names: Iterable[str]) -> list[str]:
    """Return canonical names, each once, with the suites of a group in its place.

    Groups are libero_plus (all), a suite of LIBERO (its seven categories), and either of them with `:CATEGORY`, after
    which further categories may follow. Raises ValueError for an unknown category.
    """
    found: list[str] = []
    bases: Sequence[str] | None = None  # of the group to which the next names may add categories
    for name in names:
        group, colon, category = name.partition(":")
        if colon or normalized(name) not in CATEGORIES:
            bases = _bases_of(group)
        if bases is None:
            found.append(canonical(name))
        else:
            found += _suites(bases, category if colon else normalized(name))
            bases = bases if colon or normalized(name) in CATEGORIES else None
    return list(dict.fromkeys(found))


def group_name(names: Sequence[str]) -> str:
    """Return one name for several suites: their group's, or all names joined."""
    groups = {PLUS: _suites(BASES, PLUS)}
    groups |= {f"{PLUS}_{category}": _suites(BASES, category) for category in CATEGORIES}
    groups |= {base.replace(_LIBERO, f"{PLUS}_", 1): _suites((base,), base) for base in BASES}
    return next((group for group, its in groups.items() if set(its) == set(names)), "-".join(names))


def _bases_of(group: str) -> Sequence[str] | None:
    """Return the suites of LIBERO that a group's name means; None if it means none."""
    name = normalized(group)
    base = libero.canonical(name.replace(f"{PLUS}_", _LIBERO, 1))
    return _ALL_BASES.get(name) or ((base,) if base in BASES else None)


def _suites(bases: Sequence[str], category: str) -> list[str]:
    """Return the suites of `bases` under a category; under all of them if `category` is the group's own name."""
    wanted = normalized(category)
    if wanted in CATEGORIES:
        return [canonical(f"{base}_{wanted}") for base in bases]
    if _bases_of(wanted) is None:
        raise ValueError(f"{PLUS} has the categories {', '.join(CATEGORIES)}, not {category[:40]!r}")
    return [canonical(f"{base}_{each}") for each in CATEGORIES for base in bases]
