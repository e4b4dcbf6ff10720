"""State the version of this package, once: everything else reads it here."""

__version__ = "0.4.0"
