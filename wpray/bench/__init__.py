"""Benchmarks. Each prints its measurements beside the limit that they are compared with."""
