"""Runs over many checkpoints: one table, one curve, one folder."""
