"""Benchmarks for maintainers, which measure wpray itself, and the tests of all benchmarks."""
