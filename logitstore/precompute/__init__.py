"""Everything for a teacher's forward pass: data, views, networks, processes and the build.

Torch is imported here and in ``logitstore.trainer``, nowhere else.
"""
