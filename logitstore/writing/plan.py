"""The fields of a snapshot's plan that every maker of plans fills in alike.

This module knows no rows and no store.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from logitstore.format.cards import EncodingCard
from logitstore.format.encodings.base import Encoding
from logitstore.format.grid import shard_rows
from logitstore.format.row_digests import wanted
from logitstore.values import RowDigests
from logitstore.version import __version__

_PACKAGES = ("numcodecs", "numpy", "zarr")
"""Packages that encode and compress rows."""


def encoded_as(
    entry: Encoding, rows_per_shard: int | None = None, row_digests: RowDigests = "auto"
) -> dict[str, Any]:
    """Return the fields of a plan with this encoding; None takes the encoding's own shard size."""
    return {
        "encoding": EncodingCard.of(entry),
        "rows_per_shard": rows_per_shard or shard_rows(entry.widest),
        "row_digests": wanted(row_digests, entry),
    }


def package_versions(*more: str) -> dict[str, str]:
    """Return the versions of all packages that the bytes of rows may depend on, with ``more``."""
    versions = {name: version(name) for name in sorted((*_PACKAGES, *more))}
    return {"logitstore": __version__, **versions}
