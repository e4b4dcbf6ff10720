"""Encode rows of logits as arrays and decode them: one file per kind, and the table of names.

Encoding is NumPy; decoding is NumPy, or torch where a tensor is asked for.
"""
