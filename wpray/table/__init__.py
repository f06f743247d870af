"""Runs as the table of a paper: policies by suites."""
