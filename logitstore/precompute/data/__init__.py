"""Datasets opened from their spec, and the names and numbers of their classes.

Yields images as they are; views are made elsewhere.
"""
