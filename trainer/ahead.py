"""One background thread that fetches what will be asked for next, in order, a few items deep.

The results are the same as those of a plain loop; only the waiting overlaps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

DEPTH = 4
_CHECK_SECONDS = 0.1


def read_ahead(items: Iterable[T], fetch: Callable[[T], R], depth: int = DEPTH) -> Generator[R]:
    """Yield ``fetch(item)`` for each item, at most ``depth`` + 1 of them fetched before their turn.

    What ``fetch`` raises is raised here, at its item's turn.  The thread is a daemon and is not
    joined: a Ctrl-C must not wait for a server that is away.
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
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
