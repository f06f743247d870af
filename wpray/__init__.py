"""wpray: evaluate Waypoint VLA policies on LIBERO, in parallel on Ray."""

__version__ = "0.1.0"
