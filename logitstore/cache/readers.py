"""Read rows by whole shards or from a decoded copy, and a teacher's from its snapshots' readers.

A batch from a copy is one gather from memory.  A process that cannot have the copy reads the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.cache.copy import Copy
from logitstore.cache.modes import ReadMode
from logitstore.format.encodings.base import Arrays, Logits
from logitstore.format.encodings.rows import Rows
from logitstore.reading.continued import Continued
from logitstore.reading.ensemble import Blend, Ensemble, Teacher, leaves
from logitstore.reading.snapshot import Snapshot

if TYPE_CHECKING:
    from logitstore.reading.remote import RemoteSnapshot


class RowReader(Protocol):
    """Reads a teacher's encoded rows.

    A teacher reads its own store; ``logitstore.prepare_reading`` makes readers that take the rows
    from a decoded copy, from the server, or from whole shards.
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
        snapshot = self._snapshot
        samples = snapshot.checked(indices, view)
        arrays = snapshot.encoding.empty(len(samples))
        Snapshot.gather(snapshot, samples, view, arrays)  # a served one's own asks the server
        return Rows(snapshot.encoding, arrays)

    def close(self) -> None:
        """Let go of the decoded shards."""
        self._snapshot.close()


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
        return Rows(self.snapshot.encoding, copy.take(samples, view))

    def gather(self, samples: NDArray[np.int64], view: int, out: Arrays) -> None:
        """Write the rows of checked samples into the arrays of ``out``, (len(samples), width)."""
        copy = self.copy
        if copy is None:
            self.snapshot.gather(samples, view, out)
        else:
            copy.take(samples, view, out)

    def close(self) -> None:
        """Let go of the copy."""
        self.copy = None


class UnprovenReader:
    """Reads a served snapshot's rows from the server, whose word is taken for them."""

    def __init__(self, snapshot: RemoteSnapshot) -> None:
        self._snapshot = snapshot

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows:
        """Return encoded rows of these samples, which the server says are theirs."""
        snapshot = self._snapshot
        samples = snapshot.checked(indices, view)
        arrays = snapshot.encoding.empty(len(samples))
        snapshot.stream(samples, view, arrays, proven=False)
        return Rows(snapshot.encoding, arrays)

    def close(self) -> None:
        """Do nothing: no row is kept."""


SnapshotReader = Snapshot | ShardReader | CopyReader | UnprovenReader
"""Reads the rows of one snapshot."""


class TeacherReader:
    """Reads a teacher's rows in one way (``prepare_reading``).

    ``read`` is that way, never "auto".  ``note`` is a line for the user: the way and what it cost.
    ``copies`` are the decoded copies that rows are read from, one of each stored snapshot.
    """

    def __init__(
        self,
        teacher: Teacher,
        readers: Mapping[Snapshot, SnapshotReader],
        read: ReadMode,
        note: str,
    ) -> None:
        self.teacher, self.read, self.note = teacher, read, note
        self._readers = {part: readers[part] for part in leaves(teacher)}

    def __repr__(self) -> str:
        return f"<TeacherReader of {self.teacher.name}: {self.read}>"

    @property
    def proven(self) -> bool:
        """True if each row is compared with what the root covers before it is returned."""
        return not any(isinstance(reader, UnprovenReader) for reader in self._readers.values())

    @property
    def copies(self) -> tuple[Copy, ...]:
        readers = self._readers.values()
        return tuple(r.copy for r in readers if isinstance(r, CopyReader) and r.copy is not None)

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows | Blend:
        """Return the teacher's encoded rows of these samples, (N,)."""
        if isinstance(self.teacher, Ensemble):
            members = (self._rows(part, indices, view) for part in self.teacher.parts)
            return self.teacher.blend(members)
        return self._rows(self.teacher, indices, view)

    def _rows(self, part: Snapshot | Continued, indices: ArrayLike, view: int) -> Rows:
        snapshot, view = part.part(view) if isinstance(part, Continued) else (part, view)
        return self._readers[snapshot].rows(indices, view)

    def logits(self, indices: ArrayLike, view: int = 0) -> Logits:
        """Return the teacher's logits of these samples: float32 (len(indices), C)."""
        return self.rows(indices, view).logits()

    def close(self) -> None:
        """Let go of the decoded copies and shards."""
        for reader in self._readers.values():
            reader.close()
