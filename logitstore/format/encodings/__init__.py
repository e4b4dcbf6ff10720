"""How a row of logits becomes arrays and comes back: one file per kind, and the table of names.

Encoding is NumPy; decoding is NumPy, or torch where a tensor is asked for.
"""
