"""Benchmarks: the environment protocol, LIBERO, and a fast fake."""
