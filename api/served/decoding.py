"""Decoded copies of served snapshots, made in the background: one store's one after the other.

The cache's lock makes several workers share one copy.  A copy is let go when nothing refers to its
``DecodeJob`` any more; where the cache cannot hold one, rows are read from the store directly.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from logitstore.cache.cache import Cache
from logitstore.cache.copy import Copy
from logitstore.cache.readers import CopyReader
from logitstore.errors import CacheFull, CacheInUse, Damaged, LogitstoreError, NoCache
from logitstore.format.encodings.base import Arrays
from logitstore.reading.snapshot import Snapshot

log = logging.getLogger(__name__)

DAMAGED_SECONDS, FAILED_SECONDS = 10.0, 1.0
"""Seconds before a store is read again that was damaged, or that could not be read."""

MOMENT_SECONDS = 0.05
"""Seconds after which a store that looks damaged is read again: it may just be replaced."""

WARM_GATHERS = 32
"""Gathers in a row without waiting for the disk, after which the event loop may gather itself."""


class DecodeJob:
    """The decoding of one snapshot, and what its rows are read from.

    After ``ended``, ``reader`` reads from the copy, or from the snapshot itself if the cache cannot
    hold one; ``error`` says why there is neither.  The job is the progress that the cache reports
    to.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.ended: Future[None] = Future()
        self.reader: Snapshot | CopyReader = snapshot
        self.error: Exception | None = None
        self.retry_after = float("inf")
        self.gathers = 0
        self._rows, self._elsewhere = 0, False

    def start(self, task: str, total: int, unit: str) -> None:
        self._elsewhere = False

    def advance(self, count: int) -> None:
        self._rows += count

    def message(self, text: str) -> None:
        """Take the cache's only message: another process makes the copy."""
        self._elsewhere = True

    def end(self, error: Exception | None = None) -> None:
        """Let those who wait go on; an error is kept for a while."""
        if error is not None:
            seconds = DAMAGED_SECONDS if isinstance(error, Damaged) else FAILED_SECONDS
            self.error, self.retry_after = error, time.monotonic() + seconds
        self.ended.set_result(None)

    @property
    def expired(self) -> bool:
        """Say whether the error is old enough to try again."""
        return time.monotonic() > self.retry_after

    @property
    def copied(self) -> bool:
        """Say whether rows are read from a copy."""
        return isinstance(self.reader, CopyReader)

    @property
    def warm(self) -> bool:
        """Say whether the latest gathers found their rows in memory."""
        return self.gathers >= WARM_GATHERS

    def gather(self, samples: NDArray[np.int64], view: int, out: Arrays) -> None:
        """Write the rows of checked samples into ``out``; raises the job's error."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        before = _page_faults()
        self.reader.gather(samples, view, out)
        self.gathers = self.gathers + 1 if self.copied and _page_faults() == before else 0

    def status_text(self) -> str:
        """Tell a person how far the decoding is."""
        meta = self.snapshot.meta
        total = meta.views * meta.samples
        done = f"{100 * self._rows // total} % ({self._rows:,} of {total:,} rows)"
        where = "by another worker" if self._elsewhere else done
        return f"snapshot {self.snapshot.name!r} is being decoded: {where}; try again"


def _page_faults() -> int:
    """Count how often this thread has waited for a page of a mapped file."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


class DecodeQueue:
    """Decodes snapshots, each store's in a thread of its own, so that none waits for another store.

    ``make_room`` lets go of a copy that is not used, or returns False.
    """

    def __init__(self, cache: Cache, make_room: Callable[[], bool]) -> None:
        self._cache, self._make_room = cache, make_room
        self._queues: dict[str, deque[DecodeJob]] = {}
        self._lock = threading.Lock()

    def start(self, snapshot: Snapshot) -> DecodeJob:
        """Begin to decode a snapshot, or queue it behind others of its store."""
        job = DecodeJob(snapshot)
        with self._lock:
            queue = self._queues.setdefault(snapshot.url, deque())
            queue.append(job)
            if len(queue) == 1:
                # A daemon: a server that is told to stop must not wait for it.
                threading.Thread(
                    target=self._work, args=(queue,), name="logitstore-decode", daemon=True
                ).start()
        return job

    def _work(self, queue: deque[DecodeJob]) -> None:
        """Decode until nothing of this store waits; what is at work stays first in its queue."""
        while True:
            self._decode(queue[0])
            with self._lock:
                queue.popleft()
                if not queue:
                    return

    def _decode(self, job: DecodeJob) -> None:
        snapshot = job.snapshot
        where = f"{snapshot.name} of {snapshot.url}"
        try:
            copy = self._copy(job)
        except NoCache as error:
            log.warning("%s is read directly, which is slow: %s", where, error)
            job.end()
        except Exception as error:
            log.error("%s", error, exc_info=not isinstance(error, LogitstoreError))
            job.end(error)
        else:
            how = "decoded" if copy.made else "found decoded"
            log.info("%s: %s in %.1f s", where, how, copy.seconds)
            job.reader = CopyReader(snapshot, copy)
            job.end()

    def _copy(self, job: DecodeJob) -> Copy:
        again = False
        while True:
            try:
                return self._cache.copy_of(job.snapshot, job, in_memory=False)
            except (CacheInUse, CacheFull):
                if not self._make_room():
                    raise
            except Damaged:
                if again:
                    raise
                again = True
                time.sleep(MOMENT_SECONDS)
