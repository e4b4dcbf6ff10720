"""Give a user's own training loop the logits of a store: by a dataset, and by a loader.

Knows no method and no run folder.
"""
