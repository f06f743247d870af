"""Checks that users run on their own checkpoints and parts: `python -m wpray.testing NAME ...`, or from their tests."""

from wpray.testing.benchmarks import check_benchmark

__all__ = ["check_benchmark"]
