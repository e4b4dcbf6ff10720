"""Writing snapshots: what the target store holds, what a snapshot will cost, and the writer.

This package knows rows and shards; it does not know where the logits come from.
"""
