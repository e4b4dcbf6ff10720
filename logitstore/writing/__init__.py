"""A snapshot, written: what a store already holds, what a snapshot will cost, and the writer.

Knows rows and marks, not where the logits come from.
"""
