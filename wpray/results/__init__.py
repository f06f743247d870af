"""Results of runs: schema, writing, merging and statistics; `load(RUN_DIR)` reads a run's tables."""

from wpray.results.reader import Run, load, matrix

__all__ = ["Run", "load", "matrix"]
