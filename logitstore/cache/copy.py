"""Decode a whole snapshot into a copy, from which a shuffled batch is one gather.

Each object is fetched once, verified, and decoded from those same bytes, several shards at once.
``mapped`` keeps such copies in files; ``cache`` decides which ones, and where.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from logitstore.format.documents import Document, Name, Sha256, Tuple
from logitstore.format.encodings.base import Arrays
from logitstore.format.grid import Grid, Span
from logitstore.progress import Progress
from logitstore.reading.snapshot import DECODING
from logitstore.storage import is_url
from logitstore.threads import parallel, usable_cpus

if TYPE_CHECKING:
    from logitstore.reading.snapshot import Snapshot


CONNECTIONS = 4
"""Least number of shards that are fetched from a server at once."""

MOST_THREADS = 8
"""Most threads that decode one snapshot; together all hold at most what ``DECODING`` allows."""


class ArrayIndex(Document):
    """Describes one array, (V, N, width); ``seals`` has one for each shard (``Seal``)."""

    dtype: str
    shape: tuple[int, int, int]
    seals: Tuple[str] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * self.shape[2]

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.shape[1] * self.row_bytes


class CopyIndex(Document):
    """Describes a copy's content; ``snapshot`` and ``store`` are for people who look at it."""

    most_bytes: ClassVar[int] = 64 << 20
    layout_version: Literal[2] = 2
    root: Sha256
    snapshot: Name
    store: str
    rows_per_shard: int
    arrays: dict[str, ArrayIndex]

    @classmethod
    def of(cls, snapshot: Snapshot) -> CopyIndex:
        """Describe what the copy of a snapshot must hold, without seals."""
        meta, layout = snapshot.meta, snapshot.encoding.layout
        arrays = {
            name: ArrayIndex(dtype=dtype, shape=(meta.views, meta.samples, width))
            for name, (dtype, width) in layout.items()
        }
        return cls(
            root=snapshot.root,
            snapshot=snapshot.name,
            store=snapshot.url,
            rows_per_shard=meta.rows_per_shard,
            arrays=arrays,
        )

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return sum(array.bytes for array in self.arrays.values())

    @property
    def grid(self) -> Grid:
        """The grid of the snapshot's shards: a copy is written and checked shard by shard."""
        views, samples, _ = next(iter(self.arrays.values())).shape
        return Grid(samples, views, self.rows_per_shard)


class Copy:
    """Holds all of a snapshot's rows, decoded and read-only, in this process's memory.

    ``arrays`` are (V, N, width).  ``path`` is the folder that they are mapped from, None here.
    ``made`` is False if the copy was found; ``seconds`` is how long it took to make or find it.
    """

    path: Path | None = None

    def __init__(self, index: CopyIndex, arrays: Arrays, *, made: bool) -> None:
        self.index, self.arrays = index, arrays
        self.made, self.seconds = made, 0.0

    def __repr__(self) -> str:
        return f"<Copy of {self.index.snapshot} in {self.path or 'memory'}: {self.bytes:,} bytes>"

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return self.index.bytes

    def take(self, samples: NDArray[np.int64], view: int, out: Arrays | None = None) -> Arrays:
        """Return these samples' rows in a view, (len(samples), width); written to ``out`` if given.

        View and samples must have been checked: a sample outside the copy gives another one's row.
        """
        return {
            name: array[view].take(
                samples, axis=0, mode="clip", out=None if out is None else out[name]
            )
            for name, array in self.arrays.items()
        }


def decode_into_memory(snapshot: Snapshot, progress: Progress) -> Copy:
    """Make a copy in this process's memory, without touching the disk."""
    index = CopyIndex.of(snapshot)
    arrays = {name: np.empty(array.shape, array.dtype) for name, array in index.arrays.items()}

    def keep(shard: Span, rows: Arrays) -> None:
        for name, array in arrays.items():
            array[shard.view, shard.samples] = rows[name]

    decode_all(snapshot, keep, progress)
    for array in arrays.values():
        array.flags.writeable = False
    return Copy(index, arrays, made=True)


def decode_all(
    snapshot: Snapshot, keep: Callable[[Span, Arrays], None], progress: Progress
) -> None:
    """Call ``keep`` with each shard and its rows, (rows, width) of every array, in threads."""

    def decode(shard: Span) -> int:
        with DECODING.hold(snapshot.decoded_shard_bytes):
            keep(shard, snapshot.read_shard(shard))
        return shard.rows

    threads = max(CONNECTIONS, usable_cpus()) if is_url(snapshot.url) else usable_cpus()
    progress.start(f"decoding {snapshot.name}", snapshot.meta.views * snapshot.meta.samples, "rows")
    for rows in parallel(decode, snapshot.grid.shards(), min(threads, MOST_THREADS)):
        progress.advance(rows)
