"""The middleware around every route: authentication, limits, and errors as problem documents.

Knows no store.
"""
