"""Many runs that answer one question: sweeps over teachers, figures over seeds, recipes.

Starts runs by their public functions and commands; knows no step.
"""
