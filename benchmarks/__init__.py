"""Benchmark scripts, one a file: `python -m benchmarks.NAME [--quick]`."""
