"""Decoded copies of what is served: made in the background, one after the other, and mapped.

The cache's lock makes several workers share one copy.  A copy is let go when nothing refers to its
``Decoding`` any more; where the cache cannot hold one, rows are read from the store directly.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from logitstore.cache.cache import Cache
from logitstore.cache.copy import Copy
from logitstore.cache.copy_reader import CopyReader
from logitstore.errors import LogitstoreError, NoCache
from logitstore.format.encodings.base import Arrays
from logitstore.reading.snapshot import Snapshot

log = logging.getLogger(__name__)


RETRY_SECONDS = 10.0
"""How long a failure is repeated before a repaired store is looked at again."""


CALM_GATHERS = 32
"""After so many gathers in a row that needed no disk the next ones may run on the event loop."""


class Decoding:
    """One snapshot's way to a copy.

    After ``ended``, ``reader`` reads from the copy, or from the snapshot itself if the cache cannot
    hold one; ``error`` is what kept the copy from being made otherwise.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.ended: Future[None] = Future()
        self.reader: Snapshot | CopyReader = snapshot
        self.error: Exception | None = None
        self.until = float("inf")
        self.gathers = 0
        self._rows, self._elsewhere = 0, False

    def start(self, task: str, total: int, unit: str) -> None:
        self._elsewhere = False

    def advance(self, count: int) -> None:
        self._rows += count

    def message(self, text: str) -> None:
        """The cache has one thing to say: that another process is at it."""
        self._elsewhere = True

    @property
    def expired(self) -> bool:
        """Whether it failed a while ago."""
        return time.monotonic() > self.until

    @property
    def copied(self) -> bool:
        """Whether rows are read from a copy."""
        return isinstance(self.reader, CopyReader)

    @property
    def calm(self) -> bool:
        """Whether there is a copy and gathers from it have lately needed no disk."""
        return self.gathers >= CALM_GATHERS

    def gather(self, view: int, indices: NDArray[np.int64], out: Arrays) -> None:
        """Write the rows of checked samples into ``out``, from the copy if there is one.

        Raises what kept the copy from being made, but for a cache that cannot hold it.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)
        before = _pages_read()
        self.reader.gather(indices, view, out)
        self.gathers = self.gathers + 1 if self.copied and _pages_read() == before else 0

    def told(self) -> str:
        """How far it is, for people."""
        meta = self.snapshot.meta
        total = meta.views * meta.samples
        done = f"{100 * self._rows // total} % ({self._rows:,} of {total:,} rows)"
        where = "by another worker" if self._elsewhere else done
        return f"snapshot {self.snapshot.name!r} is being decoded: {where}; try again"

    def _end(self, error: Exception | None = None) -> None:
        if error is not None:
            self.error, self.until = error, time.monotonic() + RETRY_SECONDS
        self.ended.set_result(None)


def _pages_read() -> int:
    """How often this thread has had to wait for a page of a mapped file."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


class Decoder:
    """Makes copies in a thread of its own; ``make_room`` lets go of a copy, or says False."""

    def __init__(self, cache: Cache, make_room: Callable[[], bool]) -> None:
        self._cache, self._make_room = cache, make_room
        self._queue: SimpleQueue[Decoding] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, snapshot: Snapshot) -> Decoding:
        """Begin to decode a snapshot, or queue it behind others."""
        decoding = Decoding(snapshot)
        with self._lock:
            if self._thread is None:
                # A daemon: a server that is told to stop must not wait for it.
                self._thread = threading.Thread(
                    target=self._work, name="logitstore-decode", daemon=True
                )
                self._thread.start()
        self._queue.put(decoding)
        return decoding

    def _work(self) -> None:
        while True:
            self._decode(self._queue.get())

    def _decode(self, decoding: Decoding) -> None:
        snapshot = decoding.snapshot
        try:
            copy = self._materialised(decoding)
            decoding.reader = CopyReader(snapshot, copy)
            what = "decoded" if copy.made else "found decoded"
            log.info("%s of %s: %s in %.1f s", snapshot.name, snapshot.url, what, copy.seconds)
            decoding._end()
        except NoCache as error:
            log.warning(
                "%s of %s is read directly, which is slow: %s", snapshot.name, snapshot.url, error
            )
            decoding._end()
        except Exception as error:
            log.error("%s", error, exc_info=not isinstance(error, LogitstoreError))
            decoding._end(error)

    def _materialised(self, decoding: Decoding) -> Copy:
        while True:
            try:
                return self._cache.materialise(decoding.snapshot, decoding, in_memory=False)
            except NoCache:
                if not self._make_room():
                    raise
