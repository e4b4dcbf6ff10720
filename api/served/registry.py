"""Which stores and snapshots are served: a table of names, filled by looking under the served root.

What a client sends is only ever looked up in such a table, so no client string becomes a path.
The tables are refreshed from the disk at most once a second: a store or snapshot that a build has
just committed, or replaced, is served as it is now, without a restart.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from logitstore.api.served.catalog import Signature, StoreFolder, find_stores
from logitstore.api.served.decoding import Decoder, Decoding
from logitstore.cache.cache import Cache
from logitstore.errors import Damaged, InputError, NotFound, UnknownName
from logitstore.format.wire import StoreEntry
from logitstore.reading.snapshot import Snapshot

log = logging.getLogger(__name__)


RESCAN_SECONDS = 1.0


KEPT_SNAPSHOTS = 64
"""Snapshots that stay open, with their mapped copies."""


KEPT_DECODED = 4
"""Of those that are read directly, so many: each has up to 512 MiB of decoded shards."""


IDLE_SECONDS = 60.0
"""A copy unused for so long is let go where the cache has no space for another."""


@dataclass(eq=False)
class Opened:
    """A snapshot as it was committed when the disk was last looked at (``seen``), and its copy."""

    store: StoreFolder
    snapshot: Snapshot
    signature: Signature | None
    seen: float
    used: float
    decoding: Decoding | None = None

    @property
    def direct(self) -> bool:
        """Whether its rows are read from the store, so that decoded shards stay in memory."""
        decoding = self.decoding
        return decoding is not None and decoding.ended.done() and not decoding.copied


class Registry:
    """Stores and snapshots by name, and the copies that their rows come from.

    Thread-safe; everything but ``recent`` may wait for the disk.
    """

    def __init__(self, root: Path, cache: Cache) -> None:
        self.root = root
        self._decoder = Decoder(cache, self._make_room)
        self._lock, self._opening = Lock(), Lock()
        self._scanned = float("-inf")
        self._stores: dict[str, StoreFolder] = {}
        self._open: dict[tuple[str, str], Opened] = {}

    def stores(self) -> dict[str, StoreFolder]:
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
                    name: self._stores.get(name) or StoreFolder(name, folder)
                    for name, folder in found.items()
                }
                for gone in [key for key in self._open if key[0] not in found]:
                    self._open.pop(gone, None)
                self._scanned = time.monotonic()
            return self._stores

    def store(self, name: str) -> StoreFolder:
        """The store of that name; UnknownName suggests the nearest."""
        stores = self.stores()
        if name not in stores:
            raise UnknownName.among("store", name, stores)
        return stores[name]

    def entries(self) -> list[StoreEntry]:
        """One entry for each store that can be opened."""
        entries = []
        for served in self.stores().values():
            try:
                entries.append(served.entry())
            except (Damaged, NotFound) as error:
                log.error("%s", error)
        return entries

    def recent(self, store: str, name: str) -> Opened | None:
        """A snapshot whose commit was looked at within the last second; touches no disk."""
        opened = self._open.get((store, name))
        now = time.monotonic()
        if opened is None or now - opened.seen > RESCAN_SECONDS:
            return None
        opened.used = now
        return opened

    def open(self, store: str, name: str) -> Opened:
        """A snapshot as committed on disk now; UnknownName or Damaged."""
        served = self.store(store)
        with self._opening:
            known = self._open.get((store, name))
            now = time.monotonic()
            if known is not None:  # only then is the name one of ours and no client's
                if known.signature is not None and known.signature == served.signature(name):
                    known.seen = known.used = now
                    return known
                self._open.pop((store, name), None)
            snapshots = served.open().snapshots
            if name not in list(snapshots):
                raise UnknownName.among(f"snapshot of store {store!r}:", name, snapshots)
            signature = served.signature(name)
            opened = Opened(served, snapshots[name], signature, seen=now, used=now)
            with self._lock:
                self._open[store, name] = opened
            self._forget([*self._open.items()], KEPT_SNAPSHOTS)
            return opened

    def decoding(self, opened: Opened) -> Decoding:
        """The way to the snapshot's copy; begun now if it is not, or failed a while ago."""
        with self._opening:
            if opened.decoding is None or opened.decoding.expired:
                opened.decoding = self._decoder.start(opened.snapshot)
                direct = [item for item in self._open.items() if item[1].direct]
                self._forget(direct, KEPT_DECODED)
            return opened.decoding

    def committed(self) -> list[tuple[str, str]]:
        """Store and snapshot of every commit, the newest first."""
        found = []
        for store, served in self.stores().items():
            try:
                signatures = {name: served.signature(name) for name in served.open().snapshots}
            except (Damaged, NotFound) as error:
                log.error("%s", error)
                continue
            found += [(mark[1], store, name) for name, mark in signatures.items() if mark]
        return [(store, name) for _, store, name in sorted(found, reverse=True)]

    def _forget(self, among: list[tuple[tuple[str, str], Opened]], kept: int) -> None:
        """Close those of ``among`` that were not used for longest, all but ``kept``."""
        with self._lock:
            for key, _ in sorted(among, key=lambda item: -item[1].used)[kept:]:
                self._open.pop(key, None)

    def _make_room(self) -> bool:
        """Let go of the copy that was not used for longest; False if all were used lately."""
        held = [i for i in [*self._open.items()] if i[1].decoding and i[1].decoding.copied]
        idle = [item for item in held if time.monotonic() - item[1].used > IDLE_SECONDS]
        self._forget(idle, len(idle) - 1)
        return bool(idle)
