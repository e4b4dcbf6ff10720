"""Manage the files in a cache's folder: lock them, and remove copies when space is needed.

    DIGEST/           a whole copy (``mapped``); DIGEST covers the snapshot's root and the layout
    DIGEST.lock       held by the process that makes the copy; the others wait
    .DIGEST.….tmp/    a copy that is being made or removed
    lock              held for a moment by a process that looks at all copies: to remove some

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

from logitstore.cache.copy import CopyIndex
from logitstore.cache.locks import OpenFile
from logitstore.cache.mapped import INDEX
from logitstore.errors import CacheFull, Damaged, NoCache
from logitstore.text import size

log = logging.getLogger(__name__)

WAYS_OUT = (
    "name another folder with --cache or LOGITSTORE_CACHE, or read without a copy: --read stream "
    "from a URL, --read direct from a path"
)
"""The end of errors about a folder that cannot hold a copy."""

SPARE_BYTES = 1 << 20
"""Bytes that stay free on the disk beside a new copy."""

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
        self.path.mkdir(parents=True, exist_ok=True)
        file = OpenFile(self.path / _PLAIN_LOCK, os.O_RDWR | os.O_CREAT)
        try:
            file.lock(fcntl.LOCK_EX, wait=True)
            yield
        finally:
            file.unlock()

    @contextmanager
    def maker(self, digest: str) -> Iterator[str | None]:
        """Become the only process that makes this copy: yield None, or who it is."""
        self.path.mkdir(parents=True, exist_ok=True)
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

    def make_room(self, index: CopyIndex) -> None:
        """Remove the least recently used copies until a new one fits; none if it never would.

        NoCache if the limit is too small, CacheFull if the disk is.
        """
        copies = self.entries()
        idle = [copy for copy in copies if not copy.in_use]
        removable = sum(copy.bytes for copy in idle)
        drafts = sum(_bytes_in(path) for path in self._paths() if _DRAFT.match(path.name))
        free = shutil.disk_usage(self.path).free
        over = drafts + sum(copy.bytes for copy in copies) + index.bytes - self.most_bytes
        short = index.bytes + SPARE_BYTES - free
        if over > removable:
            raise NoCache(self._over_limit(index, copies))
        if short > removable:
            raise no_space(self.path, index, free + removable)
        for copy in idle:
            if max(over, short) <= 0:
                return
            if self.remove(copy.digest):
                log.info("%s: removed the copy of %s", self.path, copy.snapshot)
                over, short = over - copy.bytes, short - copy.bytes

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
    except (FileNotFoundError, NotADirectoryError, Damaged):
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


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
        for file in files:
            total += file.stat(follow_symlinks=False).st_size
    return total
