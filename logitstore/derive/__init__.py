"""New snapshots from logits that exist: imported files, other encodings, specialists combined.

Runs no teacher and needs no torch.
"""
