"""Figures of a network over a dataset: its logits gathered once, and what follows from them.

Trains nothing and opens no run.
"""
