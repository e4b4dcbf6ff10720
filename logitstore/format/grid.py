"""Cut the rows of a snapshot into shards: from (view, sample) to shard, key and place.

Everything that writes, reads, copies or verifies rows asks a ``Grid``; nothing else computes with
``rows_per_shard``.  It does not know encodings, zarr or where bytes lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_SHARD_ROWS, MAX_SHARD_BYTES = 16_384, 32 << 20
"""The most rows, and decoded bytes of one array, in a shard that we write."""

MAX_CHUNK_ROWS, MAX_CHUNK_BYTES = 512, 1 << 20
"""The most rows, and decoded bytes, in an inner chunk that we write."""

FLAT_SHARD_ROWS, FLAT_CHUNK_ROWS = 1 << 20, 1 << 14
"""Values in a shard and in an inner chunk of the flat arrays: labels and keys."""

_KEY = re.compile(r"c/(0|[1-9]\d*)/(0|[1-9]\d*)/0")
"""The key of a shard: its view and its number in the view."""


def shard_rows(bytes_per_row: int) -> int:
    """Return the rows of a shard: the largest power of two within 16,384 and 32 MiB decoded."""
    fitting = max(1, MAX_SHARD_BYTES // bytes_per_row)
    return int(min(MAX_SHARD_ROWS, 1 << (fitting.bit_length() - 1)))


def chunk_rows(rows_per_shard: int, bytes_per_row: int) -> int:
    """Return the rows of a chunk: a power of two within 512, the shard's rows and 1 MiB."""
    fitting = max(1, MAX_CHUNK_BYTES // bytes_per_row)
    return int(min(MAX_CHUNK_ROWS, rows_per_shard, 1 << (fitting.bit_length() - 1)))


class Span(NamedTuple):
    """Holds samples ``start .. stop-1`` of one view."""

    view: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of samples in the span."""
        return self.stop - self.start

    @property
    def samples(self) -> slice:
        """The samples, to index what has one entry per sample."""
        return slice(self.start, self.stop)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The rows of the span, (view, sample) each."""
        return [(self.view, sample) for sample in range(self.start, self.stop)]


@dataclass(frozen=True)
class Grid:
    """Cuts ``views`` times ``samples`` rows into shards of ``shard_rows``; the last may be shorter.

    A shard is the unit of work, of resuming and of verification; it never holds two views.
    """

    samples: int
    views: int
    shard_rows: int

    def shards(self) -> list[Span]:
        """Return the span of every shard, in the order in which they lie."""
        return [*self]

    def __iter__(self) -> Iterator[Span]:
        """Yield the same one by one: a document may declare more shards than memory holds."""
        for view in range(self.views):
            for number in range(-(-self.samples // self.shard_rows)):
                yield self._shard(view, number)

    def number(self, span: Span) -> int:
        """Return which shard of its view a span lies in, from 0."""
        return span.start // self.shard_rows

    def key(self, span: Span) -> str:
        """Return the key of a shard, relative to the folder of an array (V, N, K)."""
        return f"c/{span.view}/{self.number(span)}/0"

    def flat_key(self, span: Span) -> str:
        """Return the key of a shard, relative to the folder of a flat array (N,)."""
        return f"c/{self.number(span)}"

    def span_of(self, key: str) -> Span | None:
        """Return the shard that ``key`` gives this key to; None for anything else."""
        parts = _KEY.fullmatch(key)
        return None if parts is None else self._shard(int(parts[1]), int(parts[2]))

    def rows_of(self, span: Span) -> slice:
        """Return where the rows of a span lie among all rows, view after view."""
        first = span.view * self.samples
        return slice(first + span.start, first + span.stop)

    def split(
        self, view: int, indices: NDArray[np.int64]
    ) -> Iterator[tuple[Span, NDArray[np.intp], NDArray[np.int64]]]:
        """Yield each shard that holds some of these samples, (n,), of a view.

        With it come the positions of its samples in ``indices``, and their rows inside the shard.
        """
        numbers = indices // self.shard_rows
        for number in np.unique(numbers).tolist():
            positions = np.flatnonzero(numbers == number)
            span = self._shard(view, number)
            yield span, positions, indices[positions] - span.start

    def _shard(self, view: int, number: int) -> Span:
        start = number * self.shard_rows
        return Span(view, start, min(start + self.shard_rows, self.samples))
