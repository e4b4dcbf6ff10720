"""What a training run is: its settings, their checks, and the small grammars inside them.

Opens no file of data, touches no device and needs no torch.
"""
