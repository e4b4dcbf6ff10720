"""The decoded copy: a snapshot's rows, decoded once on this disk and shared by all processes.

``prepare.prepare_reading`` is the one front door; it also returns readers that need no copy.
"""
