"""Difficulty of LIBERO-plus's variants: of its authors' classification, else as far as the names state a magnitude."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from wpray.benchmarks.base import Grades
from wpray.benchmarks.libero_plus.package import shipped_classification
from wpray.benchmarks.libero_plus.suites import CATEGORIES, split
from wpray.benchmarks.libero_plus.variants import Variant
from wpray.errors import BadInputError
from wpray.types import Task, TaskKey

SETTING = "LIBERO_PLUS_CLASSIFICATION"  # environment variable: path of task_classification.json
_FROM_NAMES = "magnitudes in the variants' names, 1 to 5"
_CATEGORIES = dict(
    zip(
        (
            *("Camera Viewpoints", "Robot Initial States", "Language Instructions", "Sensor Noise"),
            *("Light Conditions", "Background Textures", "Objects Layout"),
        ),
        CATEGORIES,
        strict=True,
    )
)


def grades_of(tasks: Sequence[Task]) -> Grades:
    """Return the levels of tasks, and where they are from.

    Raises BadInputError if the classification cannot be read, or has a task in another category than its name says.
    """
    variants = {task.key: Variant.of(task.name) for task in tasks}
    path = Path(os.environ[SETTING]) if os.environ.get(SETTING) else shipped_classification()
    if path is None:
        stated = {key: variant.severity for key, variant in variants.items()}
        return Grades(_FROM_NAMES, {key: str(level) for key, level in stated.items() if level is not None})
    classified = _read(path)
    graded: dict[TaskKey, str] = {}
    for key, variant in variants.items():
        category, level = classified.get((str(split(key.suite)[0]), variant.name), (variant.category, None))
        if category != variant.category:
            found = f"{path} has {variant.name} under {category}, which its name has under {variant.category}"
            raise BadInputError(f"{SETTING}: {found}; give its authors' file")
        if level is not None:
            graded[key] = level
    return Grades(str(path), graded)


def _read(path: Path) -> dict[tuple[str, str], tuple[str, str | None]]:
    """Return category and level by suite of LIBERO and name of the variant; the level is None where none is given."""
    try:
        suites = json.loads(path.read_text(encoding="utf-8"))
        return {
            (suite, entry["name"]): (_CATEGORIES[entry["category"]], _level(entry.get("difficulty_level")))
            for suite, entries in suites.items()
            for entry in entries
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        text = f"{SETTING}: {path} is no classification of LIBERO-plus's tasks ({type(error).__name__}: {reason})"
        raise BadInputError(f"{text}; give its authors' task_classification.json") from error


def _level(value: object) -> str | None:
    return None if value is None else str(value)
