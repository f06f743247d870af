"""Waypoint VLA: prompts, normalization, noise and batches around the models."""
