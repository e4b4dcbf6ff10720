"""Benchmarks: ratios with both sides in one run.  ``make bench`` prints one table."""
