"""Which stores and snapshots are served: a table of names, filled by looking under the served root.

What a client sends is only ever looked up in such a table, so no client string becomes a path.
The tables are refreshed from the disk at most once a second: a store or snapshot that a build has
just committed, or replaced, is served as it is now, without a restart.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from logitstore.errors import Damaged, InputError, NotFound, UnknownName
from logitstore.reader import Snapshot
from logitstore.schema import ATTRIBUTE, NAME_PATTERN, snapshot_folder
from logitstore.storage import LocalStorage
from logitstore.stores import LogitStore, open_stored
from logitstore.wire import SnapshotEntry, StoreEntry, StoreReply

log = logging.getLogger(__name__)

RESCAN_SECONDS = 1.0
KEPT_SNAPSHOTS = 4
"""Snapshots that stay open with their decoded shards (at most 512 MiB each)."""

Signature = tuple[int, int, int]


def find_stores(root: Path) -> dict[str, Path]:
    """Stores by name: ``root`` itself, or its direct child folders; ``.zarr`` is no part of a name.

    Links and folders whose name cannot be a store's are left out.  InputError if ``root`` is no
    folder, or a store with such a name.
    """
    try:
        if _holds_store(root):
            name = root.resolve().name.removesuffix(".zarr")
            if not re.fullmatch(NAME_PATTERN, name):
                raise InputError(f"{root}: {name!r} cannot be a store's name; rename the folder")
            return {name: root}
        with os.scandir(root) as entries:
            folders = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{root} is not a folder that can be read: {error.strerror}") from None
    found: dict[str, Path] = {}
    for folder in folders:
        name = folder.removesuffix(".zarr")
        if re.fullmatch(NAME_PATTERN, name) and _holds_store(root / folder):
            found[name] = root / folder  # of "a" and "a.zarr" the latter
    return found


def _holds_store(folder: Path) -> bool:
    """Whether a folder holds a logit store, be it damaged; not any other zarr group or array."""
    try:
        group = json.loads((folder / "zarr.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    except ValueError:
        return True
    attributes = group.get("attributes") if isinstance(group, dict) else None
    return isinstance(attributes, dict) and ATTRIBUTE in attributes


def _signature(path: Path) -> Signature | None:
    """Changes when a file is replaced; None if there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class ServedStore:
    """One store; the name it is served by is also all that its errors say of its place."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.storage = LocalStorage(folder)
        self.storage.url = name
        self._entries: dict[str, tuple[Signature | None, SnapshotEntry]] = {}

    def open(self) -> LogitStore:
        """The store as it is on disk now."""
        return open_stored(self.storage)

    def signature(self, snapshot: str) -> Signature | None:
        """That of the snapshot's commit; ``snapshot`` comes from ``names``, never from a client."""
        return _signature(self.folder / snapshot_folder(snapshot) / "commit.json")

    def reply(self) -> StoreReply:
        """The store and its snapshots; those that cannot be opened are named as damaged."""
        store, entries, damaged = self.open(), [], []
        for name in store.snapshots:
            signature = self.signature(name)
            if self._entries.get(name, (None,))[0] != signature:
                try:
                    self._entries[name] = signature, _entry(store.snapshots[name])
                except Damaged as error:
                    log.error("%s", error)
                    damaged.append(name)
                    continue
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


class Registry:
    """Stores and snapshots by name.  Thread-safe; everything here may wait for the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = Lock()
        self._scanned = float("-inf")
        self._stores: dict[str, ServedStore] = {}
        self._open: OrderedDict[tuple[str, str], tuple[Signature | None, Snapshot]] = OrderedDict()

    def stores(self) -> dict[str, ServedStore]:
        """All stores; the disk is looked at if that was not done within the last second."""
        with self._lock:
            if time.monotonic() - self._scanned > RESCAN_SECONDS:
                try:
                    found = find_stores(self.root)
                except (
                    InputError
                ) as error:  # was fine at the start, and its text is not for clients
                    raise OSError(str(error)) from error
                self._stores = {
                    name: self._stores.get(name) or ServedStore(name, folder)
                    for name, folder in found.items()
                }
                self._scanned = time.monotonic()
            return self._stores

    def store(self, name: str) -> ServedStore:
        """The store of that name; UnknownName suggests the nearest."""
        stores = self.stores()
        if name not in stores:
            raise UnknownName.among("store", name, stores)
        return stores[name]

    def entries(self) -> list[StoreEntry]:
        """One entry for each store that can be opened."""
        entries = []
        for name, served in self.stores().items():
            try:
                store = served.open()
            except (Damaged, NotFound) as error:
                log.error("%s", error)
                continue
            card = store.meta.dataset
            entries.append(
                StoreEntry(
                    name=name,
                    classes=store.meta.classes,
                    samples=card.length,
                    dataset=card.name,
                    snapshots=tuple(store.snapshots),
                )
            )
        return entries

    def snapshot(self, store: str, name: str) -> tuple[ServedStore, Snapshot]:
        """A store and its snapshot, as committed on disk now; UnknownName or Damaged."""
        served = self.store(store)
        known = self._open.get((store, name))
        if known is not None and known[0] is not None and known[0] == served.signature(name):
            self._keep(store, name, known)
            return served, known[1]
        snapshots = served.open().snapshots
        if name not in list(snapshots):
            raise UnknownName.among(f"snapshot of store {store!r}:", name, snapshots)
        signature = served.signature(name)
        snapshot = snapshots[name]
        self._keep(store, name, (signature, snapshot))
        return served, snapshot

    def _keep(self, store: str, name: str, opened: tuple[Signature | None, Snapshot]) -> None:
        with self._lock:
            self._open[store, name] = opened
            self._open.move_to_end((store, name))
            while len(self._open) > KEPT_SNAPSHOTS:
                self._open.popitem(last=False)
