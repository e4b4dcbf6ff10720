"""What is served: the stores under the root, their open snapshots and decoded copies.

Knows no HTTP.
"""
