"""Contacts of geoms, read from the simulator's arrays because robosuite walks every contact in Python, by name."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

GeomGroup = Any  # a geom's name, several names, or a robosuite model with `contact_geoms`


class Contacts:
    """Replacement for robosuite's `check_contact` on one compiled model."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model, self._data = model, data
        self._masks: dict[Any, NDArray[np.bool_]] = {}

    def between(self, first: GeomGroup, second: GeomGroup | None) -> bool:
        """Return True if any geom of `first` touches one of `second`, or anything if that is None."""
        pairs = self._data.contact.geom  # (ncon, 2)
        if len(pairs) == 0:
            return False
        a, b = pairs[:, 0], pairs[:, 1]
        of_first = self._mask(first)
        if second is None:
            return bool((of_first[a] | of_first[b]).any())
        of_second = self._mask(second)
        return bool(((of_first[a] & of_second[b]) | (of_second[a] & of_first[b])).any())

    def _mask(self, group: GeomGroup) -> NDArray[np.bool_]:
        # A robosuite model builds the list of its geoms' names at every access.
        key = tuple(group) if isinstance(group, list | set) else group
        if key not in self._masks:
            ids = [mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in _names(group)]
            mask = np.zeros(self._model.ngeom, dtype=bool)
            mask[[number for number in ids if number >= 0]] = True
            self._masks[key] = mask
        return self._masks[key]


def _names(group: GeomGroup) -> tuple[str, ...]:
    if isinstance(group, str):
        return (group,)
    if hasattr(group, "contact_geoms"):
        group = group.contact_geoms
    return tuple(group)
