"""How the rows of a teacher are read: from a decoded copy, from the server, or by whole shards.

A batch is the same bytes in every mode; the modes differ in what they cost and where they keep it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from logitstore.cache.cache import SMALL_BYTES, Cache
from logitstore.cache.copy import Copy, Index
from logitstore.cache.copy_reader import CopyReader
from logitstore.cache.ways import READS, Read, not_served
from logitstore.errors import NoCache, UnknownName
from logitstore.format.encodings.base import Logits
from logitstore.format.encodings.rows import Rows
from logitstore.progress import Progress
from logitstore.reading.continued import Continued
from logitstore.reading.ensemble import Blend, Ensemble, Teacher, leaves
from logitstore.reading.snapshot import ShardReader, Snapshot
from logitstore.storage import is_url
from logitstore.text import size


class TeacherReader:
    """Reads a teacher's rows in one way (``prepare_reading``).

    ``read`` is that way, never "auto".  ``note`` is a line for the user: the way and what it cost.
    ``copies`` are the decoded copies that rows are read from, one of each stored snapshot.
    """

    def __init__(
        self,
        teacher: Teacher,
        readers: Mapping[Snapshot, Snapshot | ShardReader | CopyReader],
        read: Read,
        note: str,
    ) -> None:
        self.teacher, self.read, self.note = teacher, read, note
        self._readers = {part: readers[part] for part in leaves(teacher)}

    def __repr__(self) -> str:
        return f"<TeacherReader of {self.teacher.name}: {self.read}>"

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


def prepare_reading(
    teacher: Teacher,
    read: str = "auto",
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> TeacherReader:
    """Return a reader of this teacher's rows, after the work that its way of reading begins with.

    ``materialise``: each shard is fetched once, verified and decoded into a copy (see ``Cache``; in
    memory up to 64 MiB).  ``stream``: a server is asked for each batch's rows.  ``direct``: whole
    verified shards, the last 512 MiB of them kept.  ``auto``: materialise if the cache can hold the
    copy, else stream from a URL, else direct.

    Raises UnknownName, InputError (stream from a path), NoCache or CacheFull (materialise), Damaged
    and what else reading raises.

    >>> reader = prepare_reading(store.snapshots["resnet56"])     # doctest: +SKIP
    >>> reader.rows([3, 1, 4], view=0).logits().shape             # doctest: +SKIP
    (3, 10)
    """
    return prepare_readings([teacher], read, cache, progress)[0]


def prepare_readings(
    teachers: Sequence[Teacher],
    read: str = "auto",
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> tuple[TeacherReader, ...]:
    """Return a reader of each teacher, all in the same mode; a snapshot they share is read once."""
    if read not in READS:
        raise UnknownName.among("way of reading", read, READS)
    parts = leaves(*teachers)
    chosen, readers, note = _prepared(parts, read, cache or Cache.default(), progress)
    return tuple(TeacherReader(teacher, readers, chosen, note) for teacher in teachers)


def _prepared(
    parts: Sequence[Snapshot], read: str, cache: Cache, progress: Progress | None
) -> tuple[Read, Mapping[Snapshot, Snapshot | ShardReader | CopyReader], str]:
    """Return the mode, a reader of each snapshot, and the line that tells the user about it."""
    served, why = all(is_url(part.url) for part in parts), ""
    if read == "stream" and not served:
        raise not_served(parts[0].url)
    if read in ("auto", "materialise"):
        try:
            copies = _copies(parts, cache, progress)
        except NoCache as error:
            if read == "materialise":
                raise
            read, why = "stream" if served else "direct", f" ({error})"
        else:
            readers = {part: CopyReader(part, copy) for part, copy in copies.items()}
            return "materialise", readers, _cost(copies)
    if read == "stream":
        how = "asked from the server, batch by batch"
        return "stream", {part: part for part in parts}, f"rows: {_shape(parts)} {how}{why}"
    how = "by whole shards, nothing decoded beforehand"
    by_shards = {part: part.by_shards() for part in parts}
    return "direct", by_shards, f"rows: {_shape(parts)} {how}{why}"


def _copies(
    parts: Sequence[Snapshot], cache: Cache, progress: Progress | None
) -> dict[Snapshot, Copy]:
    small = sum(Index.of(part).bytes for part in parts) <= SMALL_BYTES
    return {part: cache.materialise(part, progress, in_memory=small) for part in parts}


def _cost(copies: Mapping[Snapshot, Copy]) -> str:
    """rows: 200,000 x 1,000 decoded once into ~/.cache/logitstore (192.3 MiB) in 0.8 s"""
    parts, entries = list(copies), copies.values()
    amount = size(sum(copy.bytes for copy in entries))
    seconds = f"{sum(copy.seconds for copy in entries):.1f} s"
    folder = next((copy.path.parent for copy in entries if copy.path is not None), None)
    if folder is None:
        return f"rows: {_shape(parts)} decoded into memory ({amount}) in {seconds}"
    if any(copy.made for copy in entries):
        return f"rows: {_shape(parts)} decoded once into {_short(folder)} ({amount}) in {seconds}"
    return f"rows: {_shape(parts)} found decoded in {_short(folder)} ({amount}), {seconds}"


def _shape(parts: Sequence[Snapshot]) -> str:
    views, meta = sum(part.meta.views for part in parts), parts[0].meta
    shown = f"{views} x " if views > 1 else ""
    return f"{shown}{meta.samples:,} x {meta.classes:,}"


def _short(folder: Path) -> str:
    try:
        return f"~/{folder.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(folder)
