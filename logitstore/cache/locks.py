"""Open files of this user and of nobody else, and lock them until this process ends.

A lock is shared (a copy is in use) or exclusive (it is made or removed).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import weakref
from contextlib import suppress
from pathlib import Path


def make_private(folder: Path) -> None:
    """Create a folder that only this user can use, with its parents; refuse one of others."""
    os.makedirs(folder.parent, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    refuse_others(folder, os.lstat(folder), stat.S_IFDIR)


def refuse_others(path: Path, status: os.stat_result, kind: int) -> None:
    """Refuse what is another user's, what others may write to, and what is of another kind."""
    if stat.S_IFMT(status.st_mode) != kind:
        kinds = {stat.S_IFDIR: "folder", stat.S_IFREG: "plain file"}
        raise PermissionError(errno.EACCES, f"{path.name} is no {kinds[kind]}", str(path))
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EACCES, f"{path.name} belongs to another user", str(path))
    if status.st_mode & 0o022:
        raise PermissionError(errno.EACCES, f"others may write to {path.name}", str(path))


class OpenFile:
    """Opens a plain file of this user, which closes when nothing refers to it any more.

    A file of others is refused: PermissionError.  No link is followed.

    A thread that an interruption left behind may still write through it: after an earlier close its
    number could belong to another file.
    """

    def __init__(self, path: Path, flags: int) -> None:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.fd = os.open(path, flags, 0o600)
        self._finalizer = weakref.finalize(self, os.close, self.fd)
        refuse_others(path, os.fstat(self.fd), stat.S_IFREG)

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
