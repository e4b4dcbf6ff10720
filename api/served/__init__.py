"""The stores under the served root, their open snapshots and decoded copies.

Knows no HTTP.
"""
