"""New snapshots from logits that exist: imported files, other encodings, combined specialists.

This package runs no teacher and needs no torch.
"""
