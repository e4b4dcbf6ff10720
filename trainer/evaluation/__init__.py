"""Measure and correct trained weights after the run.

Reads run folders and checkpoints; trains nothing.
"""
