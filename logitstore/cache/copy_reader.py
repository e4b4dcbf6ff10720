"""Rows of one snapshot, read from its decoded copy.

A batch is one gather from memory.  A process that cannot have the copy reads the store instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.cache.copy import Copy
from logitstore.format.encodings.base import Arrays
from logitstore.format.encodings.rows import Rows
from logitstore.reading.snapshot import Snapshot


class CopyReader:
    """Reads a snapshot's rows from its decoded copy.

    ``copy`` is None after ``close``, and in a process that was sent this reader but no longer finds
    the copy: rows then come from the store.
    """

    def __init__(self, snapshot: Snapshot, copy: Copy | None) -> None:
        self.snapshot, self.copy = snapshot, copy

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows:
        """Return encoded rows of these samples, as ``Snapshot.rows`` does."""
        copy = self.copy  # another thread may close the reader meanwhile
        if copy is None:
            return self.snapshot.rows(indices, view)
        samples = self.snapshot.checked(indices, view)
        return Rows(self.snapshot.encoding, copy.take(view, samples))

    def gather(self, samples: NDArray[np.int64], view: int, out: Arrays) -> None:
        """Write the rows of checked samples into the arrays of ``out``, (len(samples), width)."""
        if self.copy is None:
            self.snapshot.gather(samples, view, out)
        else:
            self.copy.take(view, samples, out)

    def close(self) -> None:
        """Let go of the copy."""
        self.copy = None
