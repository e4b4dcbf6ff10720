"""What lies in a cache's folder, who may touch it, and what goes when space is needed.

    DIGEST/           a whole copy (``mapped``); DIGEST covers the snapshot's root and the layout
    DIGEST.lock       held by the process that makes it; the others wait
    .DIGEST.….tmp/    a copy that is being made or removed
    lock              held for a moment by whoever looks at all of them: space, sweeping, removing

All locks are flocks, which end with their process: whatever a killed one left behind is removed by
the next one that makes or clears.
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

from logitstore.cache.copy import Index
from logitstore.cache.locks import OpenFile
from logitstore.cache.mapped import INDEX
from logitstore.errors import CacheFull, Damaged, NoCache
from logitstore.text import size

log = logging.getLogger(__name__)


WAYS_OUT = (
    "name another folder with --cache or LOGITSTORE_CACHE, or read without a copy: --read stream "
    "from a URL, --read direct from a path"
)


SPARE_BYTES = 1 << 20


_COPY = re.compile(r"^[0-9a-f]{64}$")


_DRAFT = re.compile(r"^\.([0-9a-f]{64})\.[0-9a-f]+\.tmp$")


_LOCK = re.compile(r"^([0-9a-f]{64})\.lock$")


_PLAIN_LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A copy in the cache.  ``last_used`` is in seconds since 1970."""

    digest: str
    snapshot: str
    store: str
    root: str
    bytes: int
    last_used: float
    in_use: bool


@dataclass(frozen=True)
class CacheFolder:
    """The copies under ``path``; the limit is on the bytes of all of them."""

    path: Path
    most_bytes: int

    def of(self, digest: str) -> Path:
        """Where a copy lies, if there is one."""
        return self.path / digest

    def entries(self) -> list[Entry]:
        """All copies, the least recently used one first."""
        found = [_entry(path) for path in self._paths() if _COPY.match(path.name)]
        return sorted((e for e in found if e is not None), key=lambda entry: entry.last_used)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for, and be, the only one who looks at all copies."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = OpenFile(self.path / _PLAIN_LOCK, os.O_RDWR | os.O_CREAT)
        try:
            file.lock(fcntl.LOCK_EX, wait=True)
            yield
        finally:
            file.unlock()

    @contextmanager
    def maker(self, digest: str) -> Iterator[str | None]:
        """Be the only one who makes a copy: yields None, or who else is."""
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
        """A new name for a copy that is not one yet, or no more."""
        return self.path / f".{digest}.{secrets.token_hex(8)}.tmp"

    def sweep(self, mine: str | None = None) -> None:
        """Remove what killed processes left; ``mine`` is the copy whose maker this is."""
        for path in self._paths():
            left = _DRAFT.match(path.name) or _LOCK.match(path.name)
            if left and left[1] == mine and path.suffix == ".tmp":
                _remove(path)
            elif left and left[1] != mine:
                with self.maker(left[1]) as other:
                    if other is None and path.suffix == ".tmp":
                        _remove(path)

    def remove(self, digest: str) -> bool:
        """Remove a copy, whole; False if it is in use or another user's."""
        try:
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                # Without an index it is damaged, and in nobody's use.
                index = OpenFile(self.of(digest) / INDEX, os.O_RDWR)
                if not index.lock(fcntl.LOCK_EX):
                    return False
            self.discard(digest)
        except PermissionError:
            return False
        return True

    def discard(self, digest: str) -> None:
        """Remove a copy that is there, in whatever state; those who have it mapped keep theirs."""
        away = self.draft(digest)
        with suppress(FileNotFoundError):
            os.rename(self.of(digest), away)
            _remove(away)

    def make_room(self, index: Index) -> None:
        """Remove what was used least recently until a copy fits; nothing if it never would.

        NoCache if the limit is too small, CacheFull if the disk is.
        """
        entries = self.entries()
        idle = [entry for entry in entries if not entry.in_use]
        can_go = sum(entry.bytes for entry in idle)
        drafts = sum(_bytes_in(path) for path in self._paths() if _DRAFT.match(path.name))
        free = shutil.disk_usage(self.path).free
        over = drafts + sum(entry.bytes for entry in entries) + index.bytes - self.most_bytes
        short = index.bytes + SPARE_BYTES - free
        if over > can_go:
            raise NoCache(self._over_limit(index, entries))
        if short > can_go:
            raise no_space(self.path, index, free + can_go)
        for entry in idle:
            if max(over, short) <= 0:
                return
            if self.remove(entry.digest):
                log.info("%s: removed the copy of %s", self.path, entry.snapshot)
                over, short = over - entry.bytes, short - entry.bytes

    def _over_limit(self, index: Index, entries: list[Entry]) -> str:
        used = [entry for entry in entries if entry.in_use]
        names = ", ".join(entry.snapshot for entry in used[:5])
        beside = (
            f", {size(sum(entry.bytes for entry in used))} of it in use ({names})" if used else ""
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
    """The name of the copy of the snapshot with this root."""
    layout = Index.model_fields["layout_version"].default
    return hashlib.sha256(f"logitstore copy, layout {layout}, of {root}".encode()).hexdigest()


def no_space(folder: Path, index: Index, free: int) -> CacheFull:
    """The error for a full disk."""
    return CacheFull(
        f"{folder}: no space: a decoded copy of {index.snapshot!r} takes {size(index.bytes)}, "
        f"{size(free)} can be had there: free some space and run the same command again, {WAYS_OUT}"
    )


def _entry(folder: Path) -> Entry | None:
    """What lies in a folder; one without a readable index is listed as damaged; None: gone."""
    path, used, last_used = folder / INDEX, False, 0.0
    snapshot, store, root = "damaged", "", ""
    try:
        file = OpenFile(path, os.O_RDONLY)
        last_used = os.fstat(file.fd).st_mtime
        used = not file.lock(fcntl.LOCK_EX)
        with open(file.fd, "rb", closefd=False) as opened:
            index = Index.parse(str(path), opened.read())
        snapshot, store, root = index.snapshot, index.store, index.root
    except (FileNotFoundError, NotADirectoryError, Damaged):
        if not folder.is_dir():
            return None
    return Entry(
        digest=folder.name,
        snapshot=snapshot,
        store=store,
        root=root,
        bytes=_bytes_in(folder),
        last_used=last_used,
        in_use=used,
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
