"""The interface by which rows are read, whatever they are read from, and the plainest reader."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import ArrayLike

from logitstore.format.encodings.rows import Rows
from logitstore.reading.ensemble import Blend
from logitstore.reading.snapshot import Snapshot


class RowReader(Protocol):
    """Reads a teacher's encoded rows.

    Each teacher is a reader of its own store; ``logitstore.prepare_reading`` makes readers that
    take the rows from a decoded copy, from the server, or from whole shards.
    """

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows | Blend:
        """Return the rows of these samples, (N,); order kept, duplicates allowed."""

    def close(self) -> None:
        """Let go of what is held for reading: decoded shards, or a decoded copy."""


class ShardReader:
    """Reads a snapshot's rows by whole verified shards, also where a server could gather them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows:
        """Return encoded rows of these samples, as ``Snapshot.rows`` does."""
        samples = self._snapshot.checked(indices, view)
        arrays = self._snapshot.encoding.empty(len(samples))
        Snapshot.gather(self._snapshot, samples, view, arrays)
        return Rows(self._snapshot.encoding, arrays)

    def close(self) -> None:
        """Let go of the decoded shards."""
        self._snapshot.close()
