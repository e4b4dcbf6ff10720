"""The version of this package, stated once: everything else reads it here."""

__version__ = "0.4.0"
