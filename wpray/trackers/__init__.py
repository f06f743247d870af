"""Experiment trackers: where a run's rates, table, report and videos go besides its folder."""
