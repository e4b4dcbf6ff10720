"""Documents into lines for a person; what a script reads is the same documents as JSON.

Computes nothing.
"""
