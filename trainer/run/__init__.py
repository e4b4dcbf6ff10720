"""Carry out one training run: its epochs, its steps, its device, and the folder that keeps it.

Knows no method by name.
"""
