"""Conformance checks for other people's policies and benchmarks: those that wpray's own pass."""

from wpray.testing.benchmarks import check_benchmark

__all__ = ["check_benchmark"]
