"""Keep a decoded copy in files: made whole or not at all, checked when opened, mapped read-only.

A copy is a folder with one file per array, (view, sample, value), and an index with the seal of
every shard (``Seal``).  Folder and files are the user's own and closed to all others; nobody else's
are believed.  A store's own files are never mapped: whoever cuts one short would kill the process.
Copies are written with ``pwrite``, because a full disk under a map kills the process, too; a file
has its whole length from the beginning, but takes disk only as verified rows are written to it.
Every process that uses a copy holds a shared lock on its index.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitstore.cache.copy import Copy, CopyIndex, decode_all
from logitstore.cache.locks import OpenFile, refuse_others
from logitstore.cache.seal import Seal
from logitstore.errors import Damaged
from logitstore.format.encodings.base import Arrays
from logitstore.format.grid import Span
from logitstore.progress import Progress
from logitstore.storage.durable import sync_folder
from logitstore.threads import parallel, usable_cpus

if TYPE_CHECKING:
    from logitstore.reading.snapshot import Snapshot


INDEX = "index.json"
"""Name of the file that describes a copy."""

_PIECE_BYTES = 1 << 20
"""Bytes read at once for a seal: they stay in the processor's cache."""


class MappedCopy(Copy):
    """Holds a copy in files, shared by processes; in use for as long as something refers to it."""

    def __init__(
        self, folder: Path, index: CopyIndex, arrays: Arrays, lock: OpenFile, *, made: bool
    ) -> None:
        super().__init__(index, arrays, made=made)
        self.path, self._lock = folder, lock

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self.index)


def _reopened(folder: Path, index: CopyIndex) -> MappedCopy | None:
    """Open a copy in a spawned worker; None if it is gone, so that rows come from the store."""
    try:
        return open_copy(folder, index)
    except OSError:
        return None


def allocate(draft: Path, index: CopyIndex) -> dict[str, OpenFile]:
    """Create a copy's files in their whole length; they take no disk yet."""
    files = {}
    for name, array in index.arrays.items():
        file = OpenFile(draft / f"{name}.bin", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(file.fd, array.bytes)
        files[name] = file
    return files


def fill(
    draft: Path,
    folder: Path,
    files: Mapping[str, OpenFile],
    snapshot: Snapshot,
    progress: Progress,
    grow: Callable[[int], None],
) -> MappedCopy:
    """Decode a snapshot into allocated files, sync them, and move the draft to ``folder``.

    ``grow`` is called with the bytes of each shard that was verified, before they are written.
    """
    index, seal = CopyIndex.of(snapshot), Seal.own(folder.parent)
    seals: dict[tuple[str, Span], str] = {}

    def keep(shard: Span, rows: Arrays) -> None:
        grow(sum(array.nbytes for array in rows.values()))
        for name, file in files.items():
            data = rows[name].reshape(-1).view(np.uint8)
            seals[name, shard] = seal.of(index.root, name, shard, [data.data])
            _write(file, data, index.grid.rows_of(shard).start * index.arrays[name].row_bytes)

    decode_all(snapshot, keep, progress)
    for file in files.values():
        os.fsync(file.fd)
    arrays = {
        name: array.model_copy(
            update={"seals": tuple(seals[name, shard] for shard in index.grid.shards())}
        )
        for name, array in index.arrays.items()
    }
    index = index.model_copy(update={"arrays": arrays})
    lock = OpenFile(draft / INDEX, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    _write(lock, np.frombuffer(index.to_bytes(), np.uint8), 0)
    os.fsync(lock.fd)
    lock.lock(fcntl.LOCK_SH)
    sync_folder(draft)
    os.rename(draft, folder)
    sync_folder(folder.parent)
    return MappedCopy(folder, index, _mapped(index, files), lock, made=True)


def open_copy(folder: Path, expected: CopyIndex) -> MappedCopy | None:
    """Map a copy after checking every byte of it; None if there is none, or it is being removed.

    Damaged says what is wrong with it.  The index's modification time is set: the last use.
    """
    try:
        refuse_others(folder, os.lstat(folder), stat.S_IFDIR)
        lock = OpenFile(folder / INDEX, os.O_RDONLY)
    except FileNotFoundError:
        if folder.exists():
            raise Damaged(f"{folder}: {INDEX} is missing") from None
        return None
    if not lock.lock(fcntl.LOCK_SH) or not lock.is_at(folder / INDEX):
        return None
    with suppress(OSError):  # a file system that cannot be written to
        os.utime(lock.fd)
    with open(lock.fd, "rb", closefd=False) as file:
        index = CopyIndex.parse(f"{folder}/{INDEX}", file.read())
    if _content(index) != _content(expected):
        raise Damaged(f"{folder}/{INDEX}: this describes another copy")
    try:
        files = {name: OpenFile(folder / f"{name}.bin", os.O_RDONLY) for name in index.arrays}
    except FileNotFoundError as error:
        raise Damaged(f"{error.filename} is missing") from None
    _verify(folder, index, files, Seal.own(folder.parent))
    return MappedCopy(folder, index, _mapped(index, files), lock, made=False)


def _content(index: CopyIndex) -> list[Any]:
    """Return what two indices of the same copy have in common."""
    arrays = sorted((name, array.dtype, array.shape) for name, array in index.arrays.items())
    return [index.root, index.rows_per_shard, arrays]


def _verify(folder: Path, index: CopyIndex, files: Mapping[str, OpenFile], seal: Seal) -> None:
    grid = index.grid
    shards = grid.shards()
    for name, array in index.arrays.items():
        length = os.fstat(files[name].fd).st_size
        if length != array.bytes or len(array.seals) != len(shards):
            raise Damaged(f"{folder}/{name}.bin has {length} bytes, expected {array.bytes}")

    def check(task: tuple[str, Span, str]) -> None:
        name, shard, expected = task
        size, rows = index.arrays[name].row_bytes, grid.rows_of(shard)
        pieces = _pieces(files[name], rows.start * size, shard.rows * size)
        if not compare_digest(seal.of(index.root, name, shard, pieces), expected):
            raise Damaged(
                f"{folder}/{name}.bin: rows {rows.start}..{rows.stop - 1} are damaged, or no copy "
                "of this user's (their seal differs)"
            )

    tasks = [
        (name, shard, expected)
        for name, array in index.arrays.items()
        for shard, expected in zip(shards, array.seals, strict=True)
    ]
    for _ in parallel(check, tasks, usable_cpus()):
        pass


def _pieces(file: OpenFile, offset: int, length: int) -> Iterator[memoryview]:
    """Yield a part of a file in pieces, as far as the file goes; one piece's memory is reused."""
    piece, done = np.empty(min(length, _PIECE_BYTES), np.uint8), 0
    while done < length:
        part = piece[: length - done]
        read = os.preadv(file.fd, [part.data], offset + done)
        if read == 0:
            return
        yield part[:read].data
        done += read


def _mapped(index: CopyIndex, files: Mapping[str, OpenFile]) -> Arrays:
    arrays = {}
    for name, file in files.items():
        array = index.arrays[name]
        mapping = mmap.mmap(file.fd, array.bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        arrays[name] = np.frombuffer(mapping, array.dtype).reshape(array.shape)
    return arrays


def _write(file: OpenFile, data: NDArray[np.uint8], offset: int) -> None:
    while len(data):
        done = os.pwrite(file.fd, data.data, offset)
        data, offset = data[done:], offset + done
