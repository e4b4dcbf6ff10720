from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path


class OpenFile:
    """A descriptor that closes when nothing refers to it any more.

    A thread that an interruption left behind may still be writing through it: closed before, its
    number might be another file's by then.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self._finalizer = weakref.finalize(self, os.close, self.fd)

    def lock(self, kind: int, *, wait: bool = False) -> bool:
        """Take a ``fcntl.LOCK_…``; False if that would mean waiting."""
        try:
            fcntl.flock(self.fd, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            why = f"its file system has no file locks (flock: {error.strerror})"
            raise OSError(errno.ENOLCK, why) from error
        return True

    def unlock(self) -> None:
        """End the lock for forked processes, too, and close."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self._finalizer()

    def is_at(self, path: Path) -> bool:
        """Whether this is still the file of that name."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path))
        except FileNotFoundError:
            return False
