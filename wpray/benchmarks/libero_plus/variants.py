"""Variants of LIBERO's tasks, as the names of LIBERO-plus's tasks say what each perturbs.

`open_the_drawer_view_15_0_120_2_358_initstate_7_noise_31` is `open_the_drawer` seen from elsewhere, with the robot's
start number 7 and noise number 31; a `_language_3` before `_view` gives it other words. A name that ends with
`_light_3`, `_table_3`, `_tb_3`, `_add_3` or `_level1_sample2` stands for a scene of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from wpray.errors import BadInputError, shown

_NAME = re.compile(
    r"(?P<base>.+?)(?:_language_(?P<words>\d+))?"
    r"(?:_view_(?P<view>\d+_\d+_\d+_\d+_\d+)_initstate_(?P<start>\d+)(?:_noise_(?P<noise>\d+))?"
    r"|_(?P<scene>light_\d+|table_\d+|tb_\d+|add_\d+|(?:moved_)?level\d+_sample\d+))"
)
_OWN_SCENES = {"light": "light", "table": "background", "tb": "background"}  # first word -> category, else layout
_LARGEST_NOISE = 50


class View(NamedTuple):
    """Changes of the scene camera's pose."""

    around: int = 0  # degrees about the scene's vertical axis
    up: int = 0  # degrees about the horizontal axis that is parallel to y and goes through the pivot
    distance: int = 100  # percent of the distance from the pivot
    turn: int = 0  # degrees about the vertical axis, in its place
    tilt: int = 0  # degrees about the axis parallel to y, in its place


_UNMOVED = View()


@dataclass(frozen=True)
class Variant:
    """Task of LIBERO-plus: the task that it perturbs, and how."""

    name: str
    base: str  # name of LIBERO's task
    words: int = 0  # number of the rewritten instruction; 0: none
    view: View = _UNMOVED
    start: int = 0  # number of the robot's start; 0: LIBERO's
    noise: int = 0  # 1 to 50: five kinds of ten severities; 0: none
    scene: str = ""  # rest of the name of a scene of its own

    @classmethod
    def of(cls, name: str) -> Variant:
        """Return what the name of a task says. Raises BadInputError for a name that is not LIBERO-plus's."""
        found = _NAME.fullmatch(name)
        if found is None or int(found["noise"] or 0) > _LARGEST_NOISE:
            raise BadInputError(f"LIBERO-plus: the name {shown(name)} says no perturbation; install its package again")
        words, start, noise = (int(found[field] or 0) for field in ("words", "start", "noise"))
        view = View(*map(int, found["view"].split("_"))) if found["view"] else _UNMOVED
        return cls(name, found["base"], words, view, start, noise, found["scene"] or "")

    @property
    def category(self) -> str:
        """Category of the perturbation."""
        if self.scene:
            return _OWN_SCENES.get(self.scene.partition("_")[0], "layout")
        if self.words:
            return "language"
        if self.noise:
            return "noise"
        return "robot" if self.start else "camera"

    @property
    def problem(self) -> str:
        """Name of the BDDL file that describes the task, without its ending."""
        if self.scene:
            return self.name
        return f"{self.base}_language_{self.words}" if self.words else self.base

    @property
    def compiled(self) -> str:
        """Name of the BDDL file whose scene it has: variants that differ in camera, start or words share one."""
        return self.name if self.scene else self.base

    @property
    def severity(self) -> int | None:
        """Fifth of its category's range, 1 to 5, where the name states a magnitude."""
        levels = {"camera": self._view_severity, "robot": -(-self.start // 100), "noise": self._noise_severity}
        level = re.search(r"level(\d+)", self.scene)
        return int(level[1]) if level else levels.get(self.category)

    @property
    def _view_severity(self) -> int:
        """Largest of the changes, in fifths of 75 degrees around, 100 percent of distance and 10 degrees of turning."""
        view = self.view
        parts = (_degrees(view.around) / 15, (view.distance - 100) / 20, _degrees(view.turn) / 2)
        return max(1, *(-int(-part // 1) for part in (*parts, _degrees(view.tilt) / 2)))

    @property
    def _noise_severity(self) -> int:
        return (self.noise - 1) % 10 // 2 + 1


def _degrees(angle: int) -> int:
    """Return the size of an angle that is given as 0 to 359 degrees."""
    return min(angle, 360 - angle)
