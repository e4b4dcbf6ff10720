"""The tables of what is served: stores and open snapshots by name, each with its decoding.

A client's names are only ever looked up in these tables, so that none becomes a path.  The tables
are refreshed from the disk at most once a second: a store or snapshot that was just committed, or
replaced, is served as it is now, without a restart.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from logitstore.api.served.catalog import Signature, StoreFolder, find_stores
from logitstore.api.served.decoding import MOMENT_SECONDS, DecodeJob, DecodeQueue
from logitstore.cache.cache import Cache
from logitstore.errors import Damaged, InputError, LogitstoreError, NotFound, UnknownName
from logitstore.format.wire import StoreEntry
from logitstore.reading.scan import Scan
from logitstore.reading.snapshot import Snapshot

log = logging.getLogger(__name__)

RESCAN_SECONDS = 1.0
"""Seconds for which the tables are used before the disk is looked at again."""

KEPT_SNAPSHOTS = 64
"""Most snapshots that stay open, with their mapped copies."""

KEPT_DECODED = 4
"""Most snapshots without a copy that stay open: each keeps up to 512 MiB of decoded shards."""

IDLE_SECONDS = 60.0
"""Seconds without a request, after which a copy may be let go to make room for another."""


@dataclass(eq=False)
class Opened:
    """An open snapshot and its decoding.

    ``signature`` is that of its commit, last compared with the disk when it was
    ``checked``; ``used`` is when a client last asked for it.  Both are in seconds of the monotonic
    clock.
    """

    store: StoreFolder
    snapshot: Snapshot
    signature: Signature | None
    checked: float
    used: float
    job: DecodeJob | None = None

    @property
    def direct(self) -> bool:
        """Say whether its rows are read from the store, so that decoded shards stay in memory."""
        return self.job is not None and self.job.ended.done() and not self.job.copied


class Registry:
    """Finds stores and snapshots by name, and the decoding that a snapshot's rows come from.

    Thread-safe; all methods but ``recent`` may wait for the disk.
    """

    def __init__(self, root: Path, cache: Cache) -> None:
        self._scan = Scan(root)
        self._queue = DecodeQueue(cache, self._make_room)
        self._lock = Lock()
        self._opening: defaultdict[str, Lock] = defaultdict(Lock)
        self._scanned = float("-inf")
        self._stores: dict[str, StoreFolder] = {}
        self._open: dict[tuple[str, str], Opened] = {}
        self._problems: dict[str, str] = {}

    def stores(self) -> dict[str, StoreFolder]:
        """Return all stores by name, as on the disk within the last second."""
        with self._lock:
            if time.monotonic() - self._scanned > RESCAN_SECONDS:
                try:
                    folders = find_stores(self._scan)
                except InputError as error:
                    # The folder was usable at the start, and the error's text is not for clients.
                    raise OSError(str(error)) from error
                self._stores = {
                    name: self._stores.get(name) or StoreFolder(name, folder)
                    for name, folder in folders.items()
                }
                for key in [key for key in self._open if key[0] not in folders]:
                    self._open.pop(key, None)
                self._scanned = time.monotonic()
            return self._stores

    def store(self, name: str) -> StoreFolder:
        """Return the store of that name; UnknownName suggests the nearest."""
        stores = self.stores()
        if name not in stores:
            raise UnknownName.among("store", name, stores)
        return stores[name]

    def entries(self) -> list[StoreEntry]:
        """Return an entry of each store; of one that cannot be read it has only the name."""
        return [self._entry(served) for served in self.stores().values()]

    def _entry(self, served: StoreFolder) -> StoreEntry:
        problem, entry = "", StoreEntry(name=served.name, unreadable=True)
        try:
            entry = served.entry()
        except (LogitstoreError, OSError) as error:
            problem = str(error)
        if problem and self._problems.get(served.name) != problem:  # once, not at each request
            log.error("store %s cannot be read: %s", served.name, problem)
        self._problems[served.name] = problem
        return entry

    def recent(self, store: str, name: str) -> Opened | None:
        """Return a snapshot checked within the last second, else None; touches no disk."""
        opened = self._open.get((store, name))
        now = time.monotonic()
        if opened is None or now - opened.checked > RESCAN_SECONDS:
            return None
        opened.used = now
        return opened

    def open(self, store: str, name: str) -> Opened:
        """Open a snapshot as it is committed on the disk now; UnknownName or Damaged."""
        served = self.store(store)
        with self._opening[served.name]:
            known = self._open.get((store, name))
            now = time.monotonic()
            if known is not None:  # only then is the name one of ours and no client's
                if known.signature is not None and known.signature == served.signature(name):
                    known.checked = known.used = now
                    return known
                self._open.pop((store, name), None)
            try:
                opened = self._opened(served, name)
            except (Damaged, NotFound):
                time.sleep(MOMENT_SECONDS)
                opened = self._opened(served, name)
            with self._lock:
                self._open[store, name] = opened
            self._forget([*self._open.items()], KEPT_SNAPSHOTS)
            return opened

    def _opened(self, served: StoreFolder, name: str) -> Opened:
        snapshots = served.open().snapshots
        if name not in list(snapshots):
            raise UnknownName.among(f"snapshot of store {served.name!r}:", name, snapshots)
        signature, now = served.signature(name), time.monotonic()
        return Opened(served, snapshots[name], signature, checked=now, used=now)

    def is_current(self, opened: Opened) -> bool:
        """Say whether the commit on the disk is still the one that was opened."""
        return opened.store.signature(opened.snapshot.name) == opened.signature

    def job_of(self, opened: Opened) -> DecodeJob:
        """Return the snapshot's decoding; begin it if there is none, or its error expired."""
        with self._opening[opened.store.name]:
            if opened.job is None or opened.job.expired:
                opened.job = self._queue.start(opened.snapshot)
                direct = [item for item in self._open.items() if item[1].direct]
                self._forget(direct, KEPT_DECODED)
            return opened.job

    def committed(self) -> list[tuple[str, str]]:
        """Return store and snapshot of every commit, the newest first."""
        commits = []
        for store, served in self.stores().items():
            try:
                signatures = {name: served.signature(name) for name in served.open().snapshots}
            except (LogitstoreError, OSError) as error:
                log.error("%s", error)
                continue
            commits += [(mark[1], store, name) for name, mark in signatures.items() if mark]
        return [(store, name) for _, store, name in sorted(commits, reverse=True)]

    def _forget(self, among: list[tuple[tuple[str, str], Opened]], most: int) -> None:
        """Close the least recently used of ``among``, so that at most ``most`` stay open."""
        with self._lock:
            for key, _ in sorted(among, key=lambda item: -item[1].used)[most:]:
                self._open.pop(key, None)

    def _make_room(self) -> bool:
        """Let go of the least recently used copy; False if all were used lately."""
        copied = [i for i in [*self._open.items()] if i[1].job and i[1].job.copied]
        idle = [item for item in copied if time.monotonic() - item[1].used > IDLE_SECONDS]
        self._forget(idle, len(idle) - 1)
        return bool(idle)
