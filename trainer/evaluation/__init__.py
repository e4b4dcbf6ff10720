"""Trained weights, measured and corrected after the run.

Reads run folders and checkpoints; trains nothing.
"""
