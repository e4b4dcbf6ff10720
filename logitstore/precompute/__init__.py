"""A teacher's forward pass: data, views, networks, processes, and the build that joins them.

Torch is imported here and in ``logitstore.trainer``, nowhere else.
"""
