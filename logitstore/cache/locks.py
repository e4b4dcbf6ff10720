"""Lock files until the process that holds the lock ends, however it ends.

A lock is shared (a copy is in use) or exclusive (it is made or removed).
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path


class OpenFile:
    """Opens a file, which closes when nothing refers to it any more.

    A thread that an interruption left behind may still write through it: after an earlier close its
    number could belong to another file.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self._finalizer = weakref.finalize(self, os.close, self.fd)

    def lock(self, kind: int, *, wait: bool = False) -> bool:
        """Take a ``fcntl.LOCK_…``; return False if it is taken and ``wait`` is not set."""
        try:
            fcntl.flock(self.fd, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            why = f"its file system has no file locks (flock: {error.strerror})"
            raise OSError(errno.ENOLCK, why) from error
        return True

    def unlock(self) -> None:
        """Give the lock up, also for forked processes, and close the file."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self._finalizer()

    def is_at(self, path: Path) -> bool:
        """Return whether this is still the file of that name."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path))
        except FileNotFoundError:
            return False
