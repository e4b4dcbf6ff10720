"""Read a committed store, local or served; verify each object before it is decoded.

Knows no decoded copies (``logitstore.cache``) and writes nothing.
"""
