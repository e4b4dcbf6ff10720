"""Get the decoded copy of a snapshot: made once, shared by all processes of a machine.

One process makes a copy under a lock; all others wait for it and map the same files.  A copy in use
is never removed; the least recently used one is when space is needed.  A copy is whole or absent,
whatever is killed when; a damaged one is made again.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from logitstore.cache.copy import Copy, CopyIndex, decode_into_memory
from logitstore.cache.folder import (
    WAYS_OUT,
    CacheFolder,
    CopyInfo,
    Growth,
    digest_of,
    no_space,
    own_folder,
)
from logitstore.cache.mapped import MappedCopy, allocate, fill, open_copy
from logitstore.errors import Damaged, LogitstoreError, NoCache, Unfinished
from logitstore.progress import Progress, Silent
from logitstore.reading.snapshot import Snapshot
from logitstore.storage.durable import EXHAUSTED
from logitstore.text import parse_size

log = logging.getLogger(__name__)

DEFAULT_FOLDER = "~/.cache/logitstore"
"""Folder of the copies, unless --cache or LOGITSTORE_CACHE names another."""

DEFAULT_MOST_BYTES = 64 << 30
"""Bytes of all copies together, unless LOGITSTORE_CACHE_BYTES sets another limit."""

SMALL_BYTES = 64 << 20
"""Bytes of the largest copy in memory: to decode it again takes about 0.1 s."""

_POLL_SECONDS = 0.02
"""Seconds between two looks at a copy that another process makes."""


@dataclass(frozen=True)
class Cache:
    """Makes and finds copies in ``folder``, of at most ``most_bytes`` together."""

    folder: Path
    most_bytes: int = DEFAULT_MOST_BYTES

    @classmethod
    def default(cls, folder: str | Path | None = None) -> Cache:
        """Use ``folder``, else the environment's LOGITSTORE_CACHE, else ~/.cache/logitstore.

        LOGITSTORE_CACHE_BYTES is the limit, such as 20GiB or a number of bytes (default: 64 GiB).
        """
        path = os.path.expanduser(folder or os.environ.get("LOGITSTORE_CACHE") or DEFAULT_FOLDER)
        limit = os.environ.get("LOGITSTORE_CACHE_BYTES")
        return cls(
            Path(path if path.startswith("~") else os.path.abspath(path)),
            parse_size("LOGITSTORE_CACHE_BYTES", limit) if limit else DEFAULT_MOST_BYTES,
        )

    def copy_of(
        self,
        snapshot: Snapshot,
        progress: Progress | None = None,
        *,
        in_memory: bool | None = None,
    ) -> Copy:
        """Return a whole, verified copy of a snapshot; blocks until there is one.

        It lies in this process's memory if ``in_memory`` (None: if it takes at most 64 MiB), else
        in this cache's folder, where one process makes it and all others wait for it and map it.
        Raises NoCache if the folder or the limit does not allow it, CacheFull if there is no space,
        Damaged and all else that reading the snapshot raises.
        """
        progress, index, begun = progress or Silent(), CopyIndex.of(snapshot), time.monotonic()
        if in_memory is None:
            in_memory = index.bytes <= SMALL_BYTES
        if in_memory:
            copy = decode_into_memory(snapshot, progress)
        else:
            with self._os_errors_as_ours(index):
                copy = self._find_or_make(snapshot, index, progress)
        copy.seconds = time.monotonic() - begun
        return copy

    def entries(self) -> list[CopyInfo]:
        """List all copies, the least recently used one first."""
        with self._os_errors_as_ours():
            return self._files.entries()

    def clear(self) -> tuple[list[CopyInfo], list[CopyInfo]]:
        """Remove every copy that is not in use; return those removed and those kept."""
        if not self._files.path.exists():
            return [], []
        with self._os_errors_as_ours(), self._files.exclusive():
            self._files.sweep()
            copies = self._files.entries()
            removed = [copy for copy in copies if self._files.remove(copy.digest)]
        return removed, [copy for copy in copies if copy not in removed]

    @cached_property
    def _files(self) -> CacheFolder:
        return CacheFolder(own_folder(self.folder), self.most_bytes)

    def _find_or_make(self, snapshot: Snapshot, index: CopyIndex, progress: Progress) -> MappedCopy:
        """Open the copy, or make it, or wait for the process that makes it."""
        if not self.folder.is_absolute():
            raise NoCache(f"{self.folder}: this user has no home folder: {WAYS_OUT}")
        digest = digest_of(index.root)
        folder = self._files.of(digest)
        damaged, waiting = None, False
        while True:
            current = _identity(folder)
            if current is not None and current != damaged:
                try:
                    copy = open_copy(folder, index)
                except OSError as error:
                    if not _is_damage(error):
                        raise
                    log.warning("%s; the copy of %s is made again", error, index.snapshot)
                    damaged = current
                else:
                    if copy is not None:
                        return copy
                    time.sleep(_POLL_SECONDS)
                continue
            with self._files.maker(digest) as other:
                # Another process may have made it since it was looked for.
                if other is None and _identity(folder) == current:
                    return self._make(digest, snapshot, index, progress)
            if other is not None:
                if not waiting:
                    progress.message(f"waiting for {other}, which decodes {index.snapshot}")
                waiting = True
                time.sleep(_POLL_SECONDS)

    def _make(
        self, digest: str, snapshot: Snapshot, index: CopyIndex, progress: Progress
    ) -> MappedCopy:
        draft = self._files.draft(digest)
        try:
            with self._files.exclusive():
                self._files.sweep(digest)
                self._files.discard(digest)
                self._files.refuse(index, snapshot.stored_bytes())
                draft.mkdir(0o700)
                files = allocate(draft, index)
            grow = Growth(self._files, index).add
            return fill(draft, self._files.of(digest), files, snapshot, progress, grow)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def _os_errors_as_ours(self, index: CopyIndex | None = None) -> Iterator[None]:
        """Translate errors of the operating system into ours, which say what to do."""
        try:
            yield
        except LogitstoreError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and index is not None:
                free = shutil.disk_usage(self.folder).free
                raise no_space(self.folder, index, free) from error
            if error.errno in EXHAUSTED:
                raise Unfinished(
                    f"{self.folder}: no decoded copy at the moment ({error.strerror}): run the "
                    "same command again"
                ) from error
            raise NoCache(
                f"{self.folder}: this folder cannot hold decoded copies: {error.strerror}; "
                f"{WAYS_OUT}"
            ) from error


def _is_damage(error: OSError) -> bool:
    """Return whether to make the copy again; without rights, locks or memory it would not help."""
    of_others = isinstance(error, PermissionError) and error.errno == errno.EACCES
    places = (errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
    return isinstance(error, Damaged) or of_others or error.errno in places


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what differs between a folder and one that replaced it; None if there is none."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
