"""How the rows of a snapshot are read: from a decoded copy, row by row, or by whole shards.

A batch is the same bytes in every way; they differ in what they cost and where they keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from logitstore.cache.cache import SMALL_BYTES, Cache
from logitstore.cache.copy import Copy, Index
from logitstore.cache.ways import READS, Read, not_served
from logitstore.errors import NoCache, UnknownName
from logitstore.progress import Progress
from logitstore.reading.ensemble import Teacher, leaves
from logitstore.reading.snapshot import Snapshot
from logitstore.text import size


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was decided: ``read`` is never "auto".

    ``note`` is a line for the user.  ``copies`` are those of the snapshot's parts; ``seconds`` is
    what it took to get them, ``bytes`` what they hold.
    """

    read: Read
    note: str
    copies: tuple[Copy, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(copy.bytes for copy in self.copies)

    @property
    def seconds(self) -> float:
        return sum(copy.seconds for copy in self.copies)


def prepare_reading(
    snapshot: Teacher | Sequence[Teacher],
    read: str = "auto",
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Reading:
    """Decide how this snapshot's rows are read from now on, and pay for it now.

    Of several teachers, or one made of several snapshots, each stored snapshot is prepared once,
    and all of them in one way.

    ``materialise``: each shard is fetched once, verified and decoded into a copy (see ``Cache``; in
    memory up to 64 MiB).  ``stream``: a server is asked for each batch's rows.  ``direct``: whole
    verified shards, the last 512 MiB of them kept.  ``auto``: materialise if the cache can hold the
    copy, else stream from a URL, else direct.

    Raises UnknownName, InputError (stream from a path), NoCache or CacheFull (materialise), Damaged
    and what else reading raises.
    """
    if read not in READS:
        raise UnknownName.among("way of reading", read, READS)
    parts = leaves(*snapshot) if isinstance(snapshot, Sequence) else leaves(snapshot)
    served = all(part.served for part in parts)
    if read == "stream" and not served:
        raise not_served(parts[0].url)
    if read in ("stream", "direct"):
        return _from_store(parts, "stream" if read == "stream" else "direct")
    cache = cache or Cache.default()
    try:
        copies = _copies(parts, cache, progress)
    except NoCache as error:
        if read == "materialise":
            raise
        return _from_store(parts, "stream" if served else "direct", f" ({error})")
    for part, copy in zip(parts, copies, strict=True):
        part.attach(copy)
    return Reading(read="materialise", note=_cost(parts, copies), copies=copies)


def _copies(parts: Sequence[Snapshot], cache: Cache, progress: Progress | None) -> tuple[Copy, ...]:
    small = sum(Index.of(part).bytes for part in parts) <= SMALL_BYTES
    return tuple(
        part.copy
        if isinstance(part.copy, Copy)
        else cache.materialise(part, progress, in_memory=small)
        for part in parts
    )


def _from_store(
    parts: Sequence[Snapshot], read: Literal["stream", "direct"], why: str = ""
) -> Reading:
    for part in parts:
        part.attach(None)
        part.whole_shards = read == "direct"
    how = {
        "stream": "asked from the server, batch by batch",
        "direct": "by whole shards, nothing decoded beforehand",
    }
    return Reading(read=read, note=f"rows: {_shape(parts)} {how[read]}{why}")


def _cost(parts: Sequence[Snapshot], copies: Sequence[Copy]) -> str:
    """rows: 200,000 x 1,000 decoded once into ~/.cache/logitstore (192.3 MiB) in 0.8 s"""
    amount = size(sum(copy.bytes for copy in copies))
    seconds = f"{sum(copy.seconds for copy in copies):.1f} s"
    folder = next((copy.path.parent for copy in copies if copy.path is not None), None)
    if folder is None:
        return f"rows: {_shape(parts)} decoded into memory ({amount}) in {seconds}"
    if any(copy.made for copy in copies):
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
