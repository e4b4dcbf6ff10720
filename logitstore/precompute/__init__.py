"""Everything for a teacher's forward pass: data, views, networks, processes and the build.

Torch is loaded here and in ``logitstore.trainer``; elsewhere only where a tensor is asked for.
"""
