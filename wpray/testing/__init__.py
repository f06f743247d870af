"""Checks that users run on their own checkpoints and parts: `python -m wpray.testing NAME ...`."""
