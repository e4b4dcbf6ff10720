"""The decoded copy: a snapshot's rows, decoded once on this disk and shared by all processes.

``modes.prepare_reading`` is the one front door; it also reads without a copy.
"""
