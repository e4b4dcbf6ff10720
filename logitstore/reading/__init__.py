"""A committed store, read: local or served, verified before it is decoded.

Knows no decoded copies (``logitstore.cache``) and writes nothing.
"""
