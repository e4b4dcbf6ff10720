"""Networks built from their spec, checkpoints loaded as tensors only, and the forward pass.

Knows no store.
"""
