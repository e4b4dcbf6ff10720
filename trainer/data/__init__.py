"""What a student is shown: a dataset bound to a store's rows, its samples, order and batches.

Refuses data that do not fit the store, and rows that do not fit the method.
"""
