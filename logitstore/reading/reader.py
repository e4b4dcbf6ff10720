"""The one interface by which rows are read, whatever they are read from."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import ArrayLike

from logitstore.format.encodings.rows import Rows
from logitstore.reading.ensemble import Blend


class RowReader(Protocol):
    """Reads a teacher's encoded rows.

    Each teacher is a reader of its own store; ``logitstore.prepare_reading`` makes readers that
    take the rows from a decoded copy, from the server, or from whole shards.
    """

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows | Blend:
        """Return the rows of these samples, (N,); order kept, duplicates allowed."""

    def close(self) -> None:
        """Let go of what is held for reading: decoded shards, or a decoded copy."""
