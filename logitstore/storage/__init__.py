"""Keep the bytes of a store: ``Storage`` is the interface, ``open_storage`` opens a location.

Nothing else touches a store's bytes.  It does not know what the bytes mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from logitstore.errors import InputError, NotFound
from logitstore.storage.local import MAX_OBJECT_BYTES, LocalStorage


class Storage(Protocol):
    """Keeps objects by key under one root; ``url`` names the root in messages."""

    url: str

    def get(self, key: str, most_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Return the object's bytes; NotFound if there is none, Damaged if it has more."""

    def size(self, key: str) -> int | None:
        """Return the length in bytes of what has this key, or None if nothing has."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write or replace the object, atomically and durably."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object only if there is none; return False if there is one already."""

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of all objects under the folder ``prefix`` ("" or "a/b/")."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of the folders directly under the folder ``prefix``, sorted."""

    def sweep(self, emptied: str) -> None:
        """Remove dead writers' temporary files, and empty folders under the folder ``emptied``."""


def open_storage(location: str | Path) -> Storage:
    """Bind a local path; an address with a scheme that is not served here is refused."""
    text = str(location)
    scheme = re.match(r"^([a-z][a-z0-9+.-]*)://", text)
    if scheme:
        raise InputError(
            f"{text}: stores are written to and read from local paths here, not {scheme[1]}://"
        )
    return LocalStorage(Path(text))


def get_or_none(storage: Storage, key: str) -> bytes | None:
    """Return the object's bytes, or None if there is none."""
    try:
        return storage.get(key)
    except NotFound:
        return None


def is_url(location: str | Path) -> bool:
    """Return whether a store's location is the address of a server."""
    return str(location).startswith(("http://", "https://"))
