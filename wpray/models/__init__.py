"""Waypoint VLM and action expert in plain torch, which import nothing else of wpray but errors."""
