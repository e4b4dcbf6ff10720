"""Several processes that share one piece of work, and how they start and end together.

Knows neither builds nor training.
"""
