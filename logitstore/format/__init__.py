"""Define what the bytes of a store mean: documents, cards, commits, grid, arrays, encodings.

Knows neither where bytes lie nor who reads or writes them.
"""
