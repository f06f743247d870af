"""Benchmarks: each prints what it measured and the limit it is compared to."""
