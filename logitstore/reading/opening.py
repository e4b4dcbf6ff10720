"""Open a store by path or URL, and choose the snapshot that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from logitstore.errors import InputError, MismatchError
from logitstore.reading.continued import Continued
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore, open_stored
from logitstore.storage import open_storage


class Rooted(Protocol):
    """Anything that teaches: its name, and the root that identifies it."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> str: ...


def open_store(
    location: str | Path, token: str | None = None, *, patience: float = 600.0
) -> LogitStore:
    """Open a store: a path, or ``http(s)://host:port/name`` of ``logitstore serve``.

    ``token`` is the server's bearer token (default: the environment's LOGITSTORE_TOKEN).
    ``patience`` is how many seconds a server that answered once may stay away.  Raises NotFound,
    Damaged, Unreachable or Denied.
    """
    if str(location).startswith(("http://", "https://")):
        from logitstore.reading.remote import open_remote  # HTTP only where it is wanted

        return open_remote(str(location), token=token, patience=patience)
    return open_stored(open_storage(location))


def expect_root(snapshot: Rooted, root: str) -> None:
    """Refuse a snapshot that is not the one meant: ``root`` in hex, with or without "sha256:"."""
    if root.removeprefix("sha256:").lower() != snapshot.root:
        raise MismatchError(
            f"snapshot {snapshot.name!r} has root {snapshot.root}, expected {root}: this is "
            "another build; check the store's location or the expected root"
        )


def chosen_snapshot(store: LogitStore, name: str | None) -> Snapshot:
    """The named snapshot, or the only one there is."""
    names: Sequence[str] = list(store.snapshots)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise InputError(
            f"{store.url} has {len(names)} snapshots ({', '.join(names[:10]) or 'none committed'})"
            ": say which with --snapshot"
        )
    return store.snapshots[name]


def chosen_views(store: LogitStore, name: str | None) -> Snapshot | Continued:
    """As ``chosen_snapshot``; ``a+b`` are the views of snapshot a and then those of b."""
    if name is None or "+" not in name:
        return chosen_snapshot(store, name)
    return Continued([store.snapshots[part] for part in name.split("+")])
