"""Define a training run: its settings, their checks, and the small grammars inside them.

Opens no file of data, touches no device and needs no torch.
"""
