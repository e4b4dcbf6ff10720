"""Daemon threads that work in parallel or ahead of time, for work that releases Python's lock.

Hashing, zstd, crc32c, reading and writing do.  The threads are daemons and are not joined: a Ctrl-C
must not wait for a server that is away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, Full, Queue, SimpleQueue
from threading import Condition, Event, Thread
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

DEPTH = 4
"""Number of items that are fetched ahead of time."""

_CHECK_SECONDS = 0.1
"""Seconds after which a waiting thread looks whether it shall end."""


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ByteBudget:
    """Lets threads hold at most ``most`` bytes together; one that needs more waits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begin()
        # A child process has none of the threads that hold something here.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._free, self._changed = self._most, Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold so many bytes; of more than there are, all."""
        count, changed = min(count, self._most), self._changed
        with changed:
            changed.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            with changed:
                self._free += count
                changed.notify_all()


def parallel(work: Callable[[T], R], items: Sequence[T], threads: int) -> Generator[R]:
    """Yield ``work(item)`` of every item, as they are done; the first error ends it.

    Ended early, at most one item per thread is still worked on.
    """
    threads = min(threads, len(items))
    if threads < 2:
        yield from map(work, items)
        return
    todo: SimpleQueue[T] = SimpleQueue()
    for item in items:
        todo.put(item)
    results: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()
    stopped = Event()

    def run() -> None:
        while not stopped.is_set():
            try:
                results.put((work(todo.get_nowait()), None))
            except Empty:
                return
            except BaseException as error:
                results.put((None, error))
                return

    for _ in range(threads):
        Thread(target=run, name="logitstore-parallel", daemon=True).start()
    try:
        for _ in items:
            value, error = results.get()
            if error is not None:
                raise error
            yield cast("R", value)  # without an error there is a value
    finally:
        stopped.set()
        error = None  # it refers to this frame: a circle would keep the caller's files open


def read_ahead(items: Iterable[T], fetch: Callable[[T], R], depth: int = DEPTH) -> Generator[R]:
    """Yield ``fetch(item)`` for each item, at most ``depth`` + 1 of them fetched before their turn.

    What ``fetch`` raises is raised here, at its item's turn.
    """
    results: Queue[tuple[R | None, BaseException | None] | None] = Queue(maxsize=depth)
    stopped = Event()

    def put(result: tuple[R | None, BaseException | None] | None) -> bool:
        while not stopped.is_set():
            try:
                results.put(result, timeout=_CHECK_SECONDS)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((fetch(item), None)):
                    return
            put(None)
        except BaseException as error:
            put((None, error))

    Thread(target=work, name="logitstore-read-ahead", daemon=True).start()
    try:
        while (result := results.get()) is not None:
            value, error = result
            if error is not None:
                raise error
            yield cast("R", value)  # without an error there is a value
    finally:
        stopped.set()
