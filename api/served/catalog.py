"""The stores under the served root by name, and one store as it is on disk now.

A name comes from a folder on disk and never from a client.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from logitstore.errors import InputError, LogitstoreError
from logitstore.format.commits import commit_key
from logitstore.format.documents import NAME_PATTERN
from logitstore.format.wire import SnapshotEntry, StoreEntry, StoreReply
from logitstore.reading.scan import Scan
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore, open_stored
from logitstore.storage.local import LocalStorage

log = logging.getLogger(__name__)

Signature = tuple[int, int, int]
"""Inode, time of modification and length: another one after a file was replaced."""


def find_stores(scan: Scan) -> dict[str, Path]:
    """Return stores by name: the root of ``scan`` itself, or its direct child folders.

    ``.zarr`` is no part of a name.  Folders whose name cannot be a store's are left out; stores
    that cannot be read are not.  InputError if the root is no folder, or a store with such a name.
    """
    stores: dict[str, Path] = {}
    for folder, _ in scan.places():
        whole = folder == scan.root
        name = (folder.resolve() if whole else folder).name.removesuffix(".zarr")
        if re.fullmatch(NAME_PATTERN, name):
            stores[name] = folder  # of "a" and "a.zarr" the latter
        elif whole:
            raise InputError(f"{folder}: {name!r} cannot be a store's name; rename the folder")
    return stores


def _signature(path: str) -> Signature | None:
    """Return the signature of a file; None if there is none."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


class StoreFolder:
    """One store's folder; its errors say the name that it is served by, never its path."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.storage = LocalStorage(folder)
        self.storage.url = name
        self._entries: dict[str, tuple[Signature | None, SnapshotEntry]] = {}

    def open(self) -> LogitStore:
        """Open the store as it is on disk now."""
        return open_stored(self.storage)

    def signature(self, snapshot: str) -> Signature | None:
        """Return that of a snapshot's commit; the name comes from the store, never a client."""
        return _signature(f"{self.folder}/{commit_key(snapshot)}")

    def entry(self) -> StoreEntry:
        """Return the store's line in the list of all; raises what opening the store raises."""
        reply = self.reply()
        return StoreEntry(
            name=self.name,
            classes=reply.meta.classes,
            samples=reply.meta.dataset.length,
            dataset=reply.meta.dataset.name,
            snapshots=tuple(snapshot.name for snapshot in reply.snapshots),
            damaged=reply.damaged,
        )

    def reply(self) -> StoreReply:
        """Return the store and its snapshots; those that cannot be opened are named as damaged."""
        store, entries, damaged = self.open(), [], []
        for name in store.snapshots:
            try:
                signature = self.signature(name)
                if self._entries.get(name, (None,))[0] != signature:
                    self._entries[name] = signature, _entry(store.snapshots[name])
            except (LogitstoreError, OSError) as error:  # UnknownName: a newer version's encoding
                log.error("%s", error)
                damaged.append(name)
            else:
                entries.append(self._entries[name][1])
        return StoreReply(
            name=self.name, meta=store.meta, snapshots=tuple(entries), damaged=tuple(damaged)
        )


def _entry(snapshot: Snapshot) -> SnapshotEntry:
    return SnapshotEntry(
        name=snapshot.name,
        root=snapshot.root,
        views=snapshot.meta.views,
        samples=snapshot.meta.samples,
        classes=snapshot.meta.classes,
        encoding=snapshot.meta.encoding.name,
        top1=snapshot.meta.top1,
        bytes=snapshot.stored_bytes(),
    )
