"""Run a network over a dataset once, and compute figures from its logits.

Trains nothing and opens no run.
"""
