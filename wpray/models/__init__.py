"""Waypoint VLM and action expert in plain torch: imports nothing else of wpray but errors."""
