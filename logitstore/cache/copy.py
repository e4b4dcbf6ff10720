"""A whole decoded copy of a snapshot, from which a shuffled batch is one gather.

Each object is fetched once, verified, and decoded from those same bytes; shards are worked on in
several threads.  ``mapped`` keeps such copies in files; ``cache`` decides where and which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitstore.format.documents import Document, Name, Sha256
from logitstore.format.grid import Grid, Span
from logitstore.progress import Progress
from logitstore.storage import is_url
from logitstore.threads import parallel, usable_cpus

if TYPE_CHECKING:
    from logitstore.reading.snapshot import Snapshot


CONNECTIONS = 4


MOST_THREADS = 8
"""A thread holds one shard, stored and decoded: 64 MiB at most, but for odd shard sizes."""


Arrays = Mapping[str, NDArray[Any]]


class Block(NamedTuple):
    """One shard's rows; ``first`` counts through all views."""

    number: int
    shard: Span
    first: int

    @property
    def rows(self) -> int:
        """Number of rows in the shard."""
        return self.shard.rows


class ArrayIndex(Document):
    """One array, (V, N, width); ``crc32c`` has an entry for each block."""

    dtype: str
    shape: tuple[int, int, int]
    crc32c: tuple[int, ...] = ()


class Index(Document):
    """What a copy holds.  ``snapshot`` and ``store`` only tell a person where it came from."""

    layout_version: Literal[1] = 1
    root: Sha256
    snapshot: Name
    store: str
    rows_per_shard: int
    arrays: dict[str, ArrayIndex]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Index:
        """What the copy of a snapshot must be, without checksums."""
        arrays = {
            name: ArrayIndex(dtype=str(layout.dtype), shape=_three(layout.shape))
            for name, layout in snapshot.layouts.items()
        }
        return cls(
            root=snapshot.root,
            snapshot=snapshot.name,
            store=snapshot.url,
            rows_per_shard=snapshot.meta.rows_per_shard,
            arrays=arrays,
        )

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return sum(self.array_bytes(name) for name in self.arrays)

    def array_bytes(self, name: str) -> int:
        """Bytes of all rows of an array."""
        views, samples, _ = self.arrays[name].shape
        return views * samples * self.row_bytes(name)

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of an array."""
        return np.dtype(self.arrays[name].dtype).itemsize * self.arrays[name].shape[2]

    def blocks(self) -> list[Block]:
        """All blocks, in the order in which they lie."""
        views, samples, _ = next(iter(self.arrays.values())).shape
        grid = Grid(samples, views, self.rows_per_shard)
        shards = enumerate(grid.shards())
        return [Block(number, shard, grid.rows_of(shard).start) for number, shard in shards]


class Copy:
    """All of a snapshot's rows, decoded, read-only, in this process's memory.

    ``arrays`` are (V, N, width).  ``path`` is None here, else the folder that the arrays are mapped
    from.  ``seconds`` is what the copy took to get; ``made`` is False if it was there already.
    """

    path: Path | None = None

    def __init__(self, index: Index, arrays: Arrays, *, made: bool) -> None:
        self.index, self.arrays = index, arrays
        self.made, self.seconds = made, 0.0

    def __repr__(self) -> str:
        return f"<Copy of {self.index.snapshot} in {self.path or 'memory'}: {self.bytes:,} bytes>"

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return self.index.bytes

    def take(
        self, view: int, indices: NDArray[np.int64], out: Arrays | None = None
    ) -> dict[str, NDArray[Any]]:
        """Rows of these samples in one view: each array (len(indices), width).

        They are written into the arrays of ``out`` if it is given.  View and indices must have been
        checked: a sample outside the copy is not an error here, but another sample.
        """
        return {
            name: array[view].take(
                indices, axis=0, mode="clip", out=None if out is None else out[name]
            )
            for name, array in self.arrays.items()
        }


def decode_into_memory(snapshot: Snapshot, progress: Progress) -> Copy:
    """A copy in this process's memory, without touching the disk."""
    index = Index.of(snapshot)
    arrays = {name: np.empty(array.shape, array.dtype) for name, array in index.arrays.items()}

    def keep(block: Block, rows: Arrays) -> None:
        for name, array in arrays.items():
            flat = array.reshape(-1, array.shape[2])
            flat[block.first : block.first + block.rows] = rows[name]

    decode_all(snapshot, index, keep, progress)
    for array in arrays.values():
        array.flags.writeable = False
    return Copy(index, arrays, made=True)


def decode_all(
    snapshot: Snapshot, index: Index, keep: Callable[[Block, Arrays], None], progress: Progress
) -> None:
    """Give ``keep`` each block with its rows, (rows, width) of every array, in several threads."""

    def decode(block: Block) -> int:
        keep(block, snapshot.read_shard(block.shard))
        return block.rows

    threads = max(CONNECTIONS, usable_cpus()) if is_url(snapshot.url) else usable_cpus()
    progress.start(f"decoding {snapshot.name}", snapshot.meta.views * snapshot.meta.samples, "rows")
    for rows in parallel(decode, index.blocks(), min(threads, MOST_THREADS)):
        progress.advance(rows)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    views, samples, width = shape
    return views, samples, width
