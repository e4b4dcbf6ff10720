"""Decoded copies of snapshots, made once and shared by all processes of a machine.

One process makes a copy under a lock, all others wait for it and map the same files.  A copy in use
is never removed; the least recently used one is when space is needed.  A copy is complete or absent
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

from logitstore.cache.copy import Copy, Index, decode_into_memory
from logitstore.cache.folder import WAYS_OUT, CacheFolder, Entry, digest_of, no_space
from logitstore.cache.mapped import MappedCopy, allocate, fill, open_copy
from logitstore.errors import Damaged, LogitstoreError, NoCache
from logitstore.progress import Progress, Silent
from logitstore.reading.snapshot import Snapshot
from logitstore.text import parse_size

log = logging.getLogger(__name__)


DEFAULT_FOLDER = "~/.cache/logitstore"


DEFAULT_MOST_BYTES = 64 << 30


SMALL_BYTES = 64 << 20
"""Decoded, so small a snapshot is kept in memory: decoding it again takes about 0.1 s."""


_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Cache:
    """Copies in ``folder``, of at most ``most_bytes`` together."""

    folder: Path
    most_bytes: int = DEFAULT_MOST_BYTES

    @classmethod
    def default(cls, folder: str | Path | None = None) -> Cache:
        """``folder``, else the environment's LOGITSTORE_CACHE, else ~/.cache/logitstore.

        LOGITSTORE_CACHE_BYTES is the limit: 20GiB or plain bytes; 64 GiB unless it is set.
        """
        chosen = os.path.expanduser(folder or os.environ.get("LOGITSTORE_CACHE") or DEFAULT_FOLDER)
        most = os.environ.get("LOGITSTORE_CACHE_BYTES")
        return cls(
            Path(chosen if chosen.startswith("~") else os.path.abspath(chosen)),
            parse_size("LOGITSTORE_CACHE_BYTES", most) if most else DEFAULT_MOST_BYTES,
        )

    def materialise(
        self,
        snapshot: Snapshot,
        progress: Progress | None = None,
        *,
        in_memory: bool | None = None,
    ) -> Copy:
        """A whole, verified, decoded copy; blocks until there is one.

        In this process's memory if ``in_memory`` (None: if it takes at most 64 MiB), else mapped
        from this cache's folder, where one process makes it and all others wait and share it.
        Raises NoCache if the folder or the limit does not allow it, CacheFull if there is no space,
        Damaged and all else that reading the snapshot raises.
        """
        progress, index, begun = progress or Silent(), Index.of(snapshot), time.monotonic()
        if in_memory is None:
            in_memory = index.bytes <= SMALL_BYTES
        if in_memory:
            copy = decode_into_memory(snapshot, progress)
        else:
            with self._explained(index):
                copy = self._shared(snapshot, index, progress)
        copy.seconds = time.monotonic() - begun
        return copy

    def entries(self) -> list[Entry]:
        """All copies, the least recently used one first."""
        with self._explained():
            return self._copies.entries()

    def clear(self) -> tuple[list[Entry], list[Entry]]:
        """Remove every copy that is not in use; returns those removed and those kept."""
        if not self.folder.exists():
            return [], []
        with self._explained(), self._copies.alone():
            self._copies.sweep()
            entries = self._copies.entries()
            removed = [entry for entry in entries if self._copies.remove(entry.digest)]
        return removed, [entry for entry in entries if entry not in removed]

    @cached_property
    def _copies(self) -> CacheFolder:
        return CacheFolder(self.folder, self.most_bytes)

    def _shared(self, snapshot: Snapshot, index: Index, progress: Progress) -> MappedCopy:
        """Open the copy, or make it, or wait for the process that does."""
        if not self.folder.is_absolute():
            raise NoCache(f"{self.folder}: this user has no home folder: {WAYS_OUT}")
        digest = digest_of(index.root)
        refused, waiting = None, False
        while True:
            found = _identity(self._copies.of(digest))
            if found is not None and found != refused:
                try:
                    copy = open_copy(self._copies.of(digest), index)
                except OSError as error:
                    if not _is_damage(error):
                        raise
                    log.warning("%s; the copy of %s is made again", error, index.snapshot)
                    refused = found
                else:
                    if copy is not None:
                        return copy
                    time.sleep(_LOOK_SECONDS)
                continue
            with self._copies.maker(digest) as other:
                # Another process may have made it since it was looked for.
                if other is None and _identity(self._copies.of(digest)) == found:
                    return self._made(digest, snapshot, index, progress)
            if other is not None:
                if not waiting:
                    progress.message(f"waiting for {other}, which decodes {index.snapshot}")
                waiting = True
                time.sleep(_LOOK_SECONDS)

    def _made(
        self, digest: str, snapshot: Snapshot, index: Index, progress: Progress
    ) -> MappedCopy:
        copies, draft = self._copies, self._copies.draft(digest)
        try:
            with copies.alone():
                copies.sweep(digest)
                copies.discard(digest)
                copies.make_room(index)
                draft.mkdir()
                files = allocate(draft, index)
            return fill(draft, copies.of(digest), files, snapshot, progress)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def _explained(self, index: Index | None = None) -> Iterator[None]:
        """Turn what the operating system refuses into errors that say what to do."""
        try:
            yield
        except LogitstoreError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and index is not None:
                free = shutil.disk_usage(self.folder).free
                raise no_space(self.folder, index, free) from error
            raise NoCache(
                f"{self.folder}: this folder cannot hold decoded copies: {error.strerror}; "
                f"{WAYS_OUT}"
            ) from error


def _is_damage(error: OSError) -> bool:
    """Whether to make the copy again; without rights, locks or memory that would not help."""
    return isinstance(error, Damaged) or error.errno in (errno.EIO, errno.ENOTDIR, errno.EISDIR)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Another one if the folder is replaced; None if there is none."""
    try:
        found = os.stat(folder)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
