"""Open a store by path or URL, and choose a snapshot by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logitstore.errors import InputError, MismatchError
from logitstore.reading.continued import Continued
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore, open_stored
from logitstore.storage import is_url, open_storage

NO_TOKEN = ""
"""Given as a token: send none, not even the environment's."""


def open_store(
    location: str | Path, token: str | None = None, *, patience: float = 600.0
) -> LogitStore:
    """Open a store: a path, or ``http(s)://host:port/name`` of ``logitstore serve``.

    ``token`` is the server's bearer token (default: the environment's LOGITSTORE_TOKEN), which goes
    to no other server; ``NO_TOKEN`` sends none.
    ``patience`` is how many seconds a server that answered once may stay away.  Raises NotFound,
    Damaged, Unreachable or Denied.
    """
    if is_url(location):
        from logitstore.reading.remote import open_remote  # imports urllib3

        return open_remote(str(location), token=token, patience=patience)
    return open_stored(open_storage(location))


def expect_root(name: str, root: str, expected: str) -> None:
    """Refuse a snapshot with another root than ``expected``: hex, with or without "sha256:"."""
    if expected.removeprefix("sha256:").lower() != root:
        raise MismatchError(
            f"snapshot {name!r} has root {root}, expected {expected}: this is "
            "another build; check the store's location or the expected root"
        )


def chosen_snapshot(store: LogitStore, name: str | None) -> Snapshot:
    """Return the named snapshot, or the only one that there is."""
    names: Sequence[str] = list(store.snapshots)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise InputError(
            f"{store.url} has {len(names)} snapshots ({', '.join(names[:10]) or 'none committed'})"
            ": say which with --snapshot"
        )
    return store.snapshots[name]


def open_snapshot(
    location: str, name: str | None, token: str | None, *, besides: str | None = None
) -> tuple[LogitStore, Snapshot]:
    """Open a store and return it with the named snapshot, or the only one.

    ``besides`` does not count: repeated into the same store, a command meets its own snapshot.
    """
    store = open_store(location, token)
    if name is None and besides is not None:
        others = [other for other in store.snapshots if other != besides]
        name = others[0] if len(others) == 1 else None
    return store, chosen_snapshot(store, name)


def chosen_views(store: LogitStore, name: str | None) -> Snapshot | Continued:
    """Return the named snapshot; ``a+b`` are the views of snapshot a, then those of b."""
    if name is None or "+" not in name:
        return chosen_snapshot(store, name)
    return Continued([store.snapshots[part] for part in name.split("+")])
