"""All that is read of the Waypoint VLA before it is loaded. Nothing here imports torch at the top."""

from __future__ import annotations

from wpray.policies.waypoint_vla.doctor import checks as doctor_checks
from wpray.policies.waypoint_vla.spec import spec_of
from wpray.policies.waypoint_vla.units import waypoint_units

__all__ = ["doctor_checks", "spec_of", "waypoint_units"]
