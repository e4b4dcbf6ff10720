"""A store's logits for a loop of one's own: a dataset, or a loader's batches.

Knows no method and no run folder.
"""
