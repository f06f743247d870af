"""A point mass instead of a robot: episodes in milliseconds, for tests and for benchmarks of the harness."""
