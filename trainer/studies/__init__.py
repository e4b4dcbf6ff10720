"""Studies of many runs: sweeps over teachers, recipes of papers, and figures over seeds.

They start runs by public functions and commands, and know nothing of a training step.
"""
