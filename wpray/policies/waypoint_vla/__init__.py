"""Waypoint VLA: prompts, normalization, noise and batches for the models."""
