"""Prepare the reading of a teacher's rows: choose the mode, do its work, and return a reader.

A batch is the same bytes in every mode; the modes differ in what they cost and where they keep it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from logitstore.cache.cache import SMALL_BYTES, Cache
from logitstore.cache.copy import Copy, CopyIndex
from logitstore.cache.modes import READ_MODES, ReadMode, not_served
from logitstore.cache.readers import (
    CopyReader,
    ShardReader,
    SnapshotReader,
    TeacherReader,
    UnprovenReader,
)
from logitstore.errors import InputError, NoCache, UnknownName
from logitstore.progress import Progress
from logitstore.reading.ensemble import Teacher, leaves
from logitstore.reading.snapshot import DECODED_CACHE_BYTES, Snapshot
from logitstore.storage import is_url
from logitstore.text import size


def prepare_reading(
    snapshot: Teacher,
    read: str = "auto",
    cache: Cache | None = None,
    progress: Progress | None = None,
    *,
    only_proven: bool = False,
) -> TeacherReader:
    """Return a reader of this snapshot's rows, after the work that its mode begins with.

    ``materialise``: each shard is fetched once, verified and decoded into a copy (see ``Cache``; in
    memory up to 64 MiB).  ``stream``: a server is asked for each batch's rows; each row is compared
    with its committed digest, if the snapshot has digests.  ``direct``: whole verified shards, the
    last 512 MiB of them kept.  ``auto``: materialise if the cache can hold the copy, else stream
    from a URL, else direct; without digests it streams only what 512 MiB do not hold.

    With ``only_proven``, rows that nothing binds to the root are refused, and ``auto`` does without
    them; ``proven`` of the reader tells.  Raises UnknownName, InputError (stream from a path, or
    without digests), NoCache or CacheFull (materialise), Damaged and what else reading raises.

    >>> reader = prepare_reading(store.snapshots["resnet56"])     # doctest: +SKIP
    >>> reader.rows([3, 1, 4], view=0).logits().shape             # doctest: +SKIP
    (3, 10)
    """
    return prepare_readings([snapshot], read, cache, progress, only_proven=only_proven)[0]


def prepare_readings(
    teachers: Sequence[Teacher],
    read: str = "auto",
    cache: Cache | None = None,
    progress: Progress | None = None,
    *,
    only_proven: bool = False,
) -> tuple[TeacherReader, ...]:
    """Return a reader of each teacher, all in one mode; a snapshot that they share is read once."""
    if read not in READ_MODES:
        raise UnknownName.among("way of reading", read, READ_MODES)
    parts = leaves(*teachers)
    if read == "stream" and only_proven:
        refuse_unproven(*teachers)
    mode, readers, note = _prepare(parts, read, cache or Cache.default(), progress, only_proven)
    return tuple(TeacherReader(teacher, readers, mode, note) for teacher in teachers)


def refuse_unproven(*teachers: Teacher) -> None:
    """Refuse to stream snapshots without row digests: nothing would bind their rows to a root."""
    for part in _without_digests(leaves(*teachers)):
        raise InputError(
            f"{part.url}: snapshot {part.name!r} has no row digests, so that rows which the server "
            "streams cannot be proven to be those of its root: use --read materialise or direct, "
            "or build it with --row-digests yes"
        )


def _prepare(
    parts: Sequence[Snapshot],
    read: str,
    cache: Cache,
    progress: Progress | None,
    only_proven: bool,
) -> tuple[ReadMode, Mapping[Snapshot, SnapshotReader], str]:
    """Return the mode, a reader of each snapshot, and a line for the user."""
    why = ""
    if read == "stream" and not _served(parts):
        raise not_served(parts[0].url)
    if read in ("auto", "materialise"):
        small = sum(CopyIndex.of(part).bytes for part in parts) <= SMALL_BYTES
        try:
            copies = {part: cache.copy_of(part, progress, in_memory=small) for part in parts}
        except NoCache as error:
            if read == "materialise":
                raise
            read, why = _without_copies(parts, only_proven), f" ({error})"
        else:
            from_copies = {part: CopyReader(part, copy) for part, copy in copies.items()}
            return "materialise", from_copies, _copied_note(copies)
    if read == "stream":
        readers, how = _streaming(parts)
        return "stream", readers, f"rows: {_shape(parts)} {how}{why}"
    how = "by whole shards, nothing decoded beforehand"
    by_shards = {part: ShardReader(part) for part in parts}
    return "direct", by_shards, f"rows: {_shape(parts)} {how}{why}"


def _without_copies(parts: Sequence[Snapshot], only_proven: bool) -> ReadMode:
    """Return how ``auto`` reads what the cache cannot hold: proven rows wherever it can be."""
    if not _served(parts):
        return "direct"
    if not _without_digests(parts):
        return "stream"
    # Shuffled batches of more than what is kept would fetch every shard again and again.
    kept = all(CopyIndex.of(part).bytes <= DECODED_CACHE_BYTES for part in parts)
    return "direct" if kept or only_proven else "stream"


def _streaming(parts: Sequence[Snapshot]) -> tuple[Mapping[Snapshot, SnapshotReader], str]:
    """Return a reader of each served snapshot that asks for rows, and what to tell the user."""
    from logitstore.reading.remote import RemoteSnapshot  # imports urllib3

    readers: dict[Snapshot, SnapshotReader] = {part: part for part in parts}
    unproven = _without_digests(parts)
    for part in unproven:
        assert isinstance(part, RemoteSnapshot)  # it is served
        readers[part] = UnprovenReader(part)
    how = "asked from the server, batch by batch"
    if not unproven:
        return readers, f"{how}, each proven by its digest"
    names = ", ".join(repr(part.name) for part in unproven)
    return readers, f"{how}, not proven: {names} without row digests, the server is believed"


def _served(parts: Sequence[Snapshot]) -> bool:
    return all(is_url(part.url) for part in parts)


def _without_digests(parts: Sequence[Snapshot]) -> list[Snapshot]:
    return [part for part in parts if not part.meta.row_digests]


def _copied_note(copies: Mapping[Snapshot, Copy]) -> str:
    """Write "rows: 200,000 x 1,000 decoded once into ~/.cache/logitstore (192.3 MiB) in 0.8 s"."""
    shape, all_copies = _shape(list(copies)), copies.values()
    amount = size(sum(copy.bytes for copy in all_copies))
    seconds = f"{sum(copy.seconds for copy in all_copies):.1f} s"
    folder = next((copy.path.parent for copy in all_copies if copy.path is not None), None)
    if folder is None:
        return f"rows: {shape} decoded into memory ({amount}) in {seconds}"
    if any(copy.made for copy in all_copies):
        return f"rows: {shape} decoded once into {_short(folder)} ({amount}) in {seconds}"
    return f"rows: {shape} found decoded in {_short(folder)} ({amount}), {seconds}"


def _shape(parts: Sequence[Snapshot]) -> str:
    views, meta = sum(part.meta.views for part in parts), parts[0].meta
    several = f"{views} x " if views > 1 else ""
    return f"{several}{meta.samples:,} x {meta.classes:,}"


def _short(folder: Path) -> str:
    try:
        return f"~/{folder.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(folder)
