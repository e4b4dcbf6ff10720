"""Open a run's data: a dataset bound to a store's rows, its samples, their order and batches.

Refuses data that do not fit the store, and rows or labels that do not fit the method.
"""
