"""One training run: the epochs, the step, the device, and the folder that keeps it.

Knows no method by name.
"""
