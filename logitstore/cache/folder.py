"""Manage the files in a cache's folder: lock them, and remove copies when space is needed.

    DIGEST/           a whole copy (``mapped``); DIGEST covers the snapshot's root and the layout
    DIGEST.lock       held by the process that makes the copy; the others wait
    .DIGEST.….tmp/    a copy that is being made or removed
    lock              held for a moment by a process that looks at all copies: to remove some
    key               of the seals, if the user has no home folder (``seal``)
    user-UID/         the same, of a user who does not own the folder or is not alone in it

Folders are made with mode 0700 and files with 0600, and nobody else's are used or followed.
All locks are flocks, which end with their process: what a killed process left behind is removed by
the next one that makes a copy or clears the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from logitstore.cache.copy import CopyIndex
from logitstore.cache.locks import OpenFile, make_private
from logitstore.cache.mapped import INDEX
from logitstore.errors import CacheFull, CacheInUse, Damaged, NoCache
from logitstore.text import size

log = logging.getLogger(__name__)

WAYS_OUT = (
    "name another folder with --cache or LOGITSTORE_CACHE, or read without a copy: --read stream "
    "from a URL, --read direct from a path"
)
"""The end of errors about a folder that cannot hold a copy."""

SPARE_BYTES = 1 << 20
"""Bytes that stay free on the disk beside a new copy."""

STEP_BYTES = 64 << 20
"""Bytes for which a growing copy finds room beforehand, beyond what was verified."""

MOST_EXPANSION = 64
"""Largest ratio of a copy to its stored rows, if the copy takes more than a step.

Logits that a network computed are stored in a quarter of their size at the least.
"""

_COPY = re.compile(r"^[0-9a-f]{64}$")
_DRAFT = re.compile(r"^\.([0-9a-f]{64})\.[0-9a-f]+\.tmp$")
_LOCK = re.compile(r"^([0-9a-f]{64})\.lock$")
_PLAIN_LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class CopyInfo:
    """Describes a copy in the cache.  ``last_used`` is in seconds since 1970."""

    digest: str
    snapshot: str
    store: str
    root: str
    bytes: int
    last_used: float
    in_use: bool


@dataclass(frozen=True)
class CacheFolder:
    """Lists, locks and removes the copies under ``path``, of at most ``most_bytes`` together."""

    path: Path
    most_bytes: int

    def of(self, digest: str) -> Path:
        """Return the folder of a copy, whether it is there or not."""
        return self.path / digest

    def entries(self) -> list[CopyInfo]:
        """List all copies, the least recently used one first."""
        copies = [_describe(path) for path in self._paths() if _COPY.match(path.name)]
        return sorted((copy for copy in copies if copy), key=lambda copy: copy.last_used)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other process looks at all copies, and keep others from it."""
        make_private(self.path)
        file = OpenFile(self.path / _PLAIN_LOCK, os.O_RDWR | os.O_CREAT)
        try:
            file.lock(fcntl.LOCK_EX, wait=True)
            yield
        finally:
            file.unlock()

    @contextmanager
    def maker(self, digest: str) -> Iterator[str | None]:
        """Become the only process that makes this copy: yield None, or who it is."""
        make_private(self.path)
        path = self.path / f"{digest}.lock"
        file = OpenFile(path, os.O_RDWR | os.O_CREAT)
        if not file.lock(fcntl.LOCK_EX) or not file.is_at(path):
            yield os.pread(file.fd, 200, 0).decode(errors="replace") or "another process"
            return
        try:
            name = f"process {os.getpid()} on {socket.gethostname()}".encode()
            os.ftruncate(file.fd, os.pwrite(file.fd, name, 0))
            yield None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)
            file.unlock()

    def draft(self, digest: str) -> Path:
        """Return a temporary folder's name, for a copy that is being made or removed."""
        return self.path / f".{digest}.{secrets.token_hex(8)}.tmp"

    def sweep(self, making: str | None = None) -> None:
        """Remove what killed processes left; ``making`` is the copy that this process makes."""
        for path in self._paths():
            match = _DRAFT.match(path.name) or _LOCK.match(path.name)
            if match and match[1] == making and path.suffix == ".tmp":
                _remove(path)
            elif match and match[1] != making:
                with self.maker(match[1]) as other:
                    if other is None and path.suffix == ".tmp":
                        _remove(path)

    def remove(self, digest: str) -> bool:
        """Remove a whole copy; return False if it is in use or another user's."""
        try:
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                # Without an index it is damaged, and nobody uses it.
                index = OpenFile(self.of(digest) / INDEX, os.O_RDWR)
                if not index.lock(fcntl.LOCK_EX):
                    return False
            self.discard(digest)
        except PermissionError:
            return False
        return True

    def discard(self, digest: str) -> None:
        """Remove a copy in whatever state; processes that have it mapped keep their mapping."""
        draft = self.draft(digest)
        with suppress(FileNotFoundError):
            os.rename(self.of(digest), draft)
            _remove(draft)

    def make_room(self, index: CopyIndex, count: int) -> None:
        """Remove the least recently used copies until ``count`` bytes more of a copy fit."""
        over, short, idle = self._missing(index, count)
        for copy in idle:
            if max(over, short) <= 0:
                return
            if self.remove(copy.digest):
                log.info("%s: removed the copy of %s", self.path, copy.snapshot)
                over, short = over - copy.bytes, short - copy.bytes

    def refuse(self, index: CopyIndex, stored: int) -> None:
        """Refuse a copy of so many stored bytes that never fits; nothing is removed for it.

        NoCache if the limit is too small or the rows are stored in next to nothing, CacheInUse if
        the copies in use leave no room, CacheFull if the disk does not.
        """
        if index.bytes > STEP_BYTES + MOST_EXPANSION * stored:
            raise NoCache(
                f"{self.path}: a decoded copy of {index.snapshot!r} takes {size(index.bytes)}, "
                f"more than {MOST_EXPANSION} times the {size(stored)} in which its rows are "
                "stored: such a snapshot is read without a copy"
            )
        self._missing(index, index.bytes)

    def _missing(self, index: CopyIndex, count: int) -> tuple[int, int, list[CopyInfo]]:
        """Return the bytes above limit and disk with ``count`` more, and the removable copies."""
        copies = self.entries()
        idle = [copy for copy in copies if not copy.in_use]
        removable = sum(copy.bytes for copy in idle)
        drafts = sum(_taken_by(path) for path in self._paths() if _DRAFT.match(path.name))
        free = shutil.disk_usage(self.path).free
        over = drafts + sum(copy.bytes for copy in copies) + count - self.most_bytes
        short = count + SPARE_BYTES - free
        if over > removable:
            kind = NoCache if index.bytes > self.most_bytes else CacheInUse
            raise kind(self._over_limit(index, copies))
        if short > removable:
            raise no_space(self.path, index, free + removable)
        return over, short, idle

    def _over_limit(self, index: CopyIndex, copies: list[CopyInfo]) -> str:
        used = [copy for copy in copies if copy.in_use]
        names = ", ".join(copy.snapshot for copy in used[:5])
        beside = (
            f", {size(sum(copy.bytes for copy in used))} of it in use ({names})" if used else ""
        )
        return (
            f"{self.path}: a decoded copy of {index.snapshot!r} takes {size(index.bytes)}, the "
            f"cache may hold {size(self.most_bytes)}{beside}: raise LOGITSTORE_CACHE_BYTES, "
            f"{WAYS_OUT}"
        )

    def _paths(self) -> list[Path]:
        try:
            return sorted(self.path.iterdir())
        except FileNotFoundError:
            return []


class Growth:
    """Makes room for a copy while it is made: never more than a step beyond what was verified."""

    def __init__(self, files: CacheFolder, index: CopyIndex) -> None:
        self._files, self._index, self._lock = files, index, Lock()
        self._verified, self._room = 0, 0

    def add(self, count: int) -> None:
        """Count verified bytes, which are written next; raises what ``refuse`` raises."""
        with self._lock:
            self._verified += count
            if self._verified > self._room:
                room = min(self._index.bytes, self._verified + STEP_BYTES)
                with self._files.exclusive():
                    self._files.make_room(self._index, room - self._room)
                self._room = room


def own_folder(folder: Path) -> Path:
    """Return the folder if only this user writes to it, else the place of this user's own in it."""
    try:
        status = os.stat(folder)
    except OSError:
        return folder
    alone = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return folder if alone else folder / f"user-{os.geteuid()}"


def digest_of(root: str) -> str:
    """Return the name of the copy of the snapshot with this root."""
    layout = CopyIndex.model_fields["layout_version"].default
    return hashlib.sha256(f"logitstore copy, layout {layout}, of {root}".encode()).hexdigest()


def no_space(folder: Path, index: CopyIndex, free: int) -> CacheFull:
    """Return the error for a full disk."""
    return CacheFull(
        f"{folder}: no space: a decoded copy of {index.snapshot!r} takes {size(index.bytes)}, "
        f"{size(free)} can be had there: free some space and run the same command again, {WAYS_OUT}"
    )


def _describe(folder: Path) -> CopyInfo | None:
    """Describe a copy, as damaged if its index cannot be read; None if the folder is gone."""
    path, in_use, last_used = folder / INDEX, False, 0.0
    snapshot, store, root = "damaged", "", ""
    try:
        file = OpenFile(path, os.O_RDONLY)
        last_used = os.fstat(file.fd).st_mtime
        in_use = not file.lock(fcntl.LOCK_EX)
        with open(file.fd, "rb", closefd=False) as opened:
            index = CopyIndex.parse(str(path), opened.read())
        snapshot, store, root = index.snapshot, index.store, index.root
    except (FileNotFoundError, NotADirectoryError, PermissionError, Damaged):
        if not folder.is_dir():
            return None
    return CopyInfo(
        digest=folder.name,
        snapshot=snapshot,
        store=store,
        root=root,
        bytes=_bytes_in(folder),
        last_used=last_used,
        in_use=in_use,
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _taken_by(draft: Path) -> int:
    """Return the bytes of disk that a copy takes by now: its files have their length before."""
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(draft) as files:
        for file in files:
            total += 512 * file.stat(follow_symlinks=False).st_blocks
    return total


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
        for file in files:
            total += file.stat(follow_symlinks=False).st_size
    return total
