"""Benchmarks: ratios of two sides that are measured in one run.  ``make bench`` prints one table.

``registry`` lists what is compared with what, and the targets.  One file per family makes the
sides, ``harness`` runs them in turns, ``report`` writes the table and the JSON document.
"""
