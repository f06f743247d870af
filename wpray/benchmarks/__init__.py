"""Benchmarks: what one is, LIBERO, and a fast fake."""
