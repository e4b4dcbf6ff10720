"""Decode a snapshot's rows once on this machine, into a copy that all its processes share.

Call ``prepare.prepare_reading``; it also returns readers that need no copy.
"""
