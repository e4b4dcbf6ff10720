"""Benchmarks: ratios with both sides in one run.  ``make bench`` prints one table.

``registry`` says what is compared with what and how far it should reach; one file per family holds
the sides; ``harness`` lets them take turns; ``report`` writes the table and the JSON document.
"""
