"""Count the bytes of encoded rows, compressed as the chunks of a shard are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from logitstore.format.arrays import ZSTD_LEVEL
from logitstore.format.encodings.base import Arrays, Encoding
from logitstore.format.grid import chunk_rows, shard_rows

CRC_BYTES, INDEX_BYTES = 4, 16
"""Bytes of a checksum, and of an inner chunk's entry in the index of its shard."""


def row_bytes(entry: Encoding, arrays: Arrays) -> float:
    """Return the compressed bytes of one row like these, in the chunks of a default shard."""
    rows = len(next(iter(arrays.values())))
    power = 1 << (rows.bit_length() - 1)  # the largest one up to ``rows``
    chunk = chunk_rows(min(shard_rows(entry.widest), power), entry.widest)
    starts = range(0, rows - chunk + 1, chunk)
    return _mean(arrays, [np.arange(start, start + chunk) for start in starts])


def chunked_bytes(arrays: Arrays, chunk: int) -> float:
    """Return the compressed bytes of one row like these, in chunks of so many rows.

    Each chunk takes rows from all over the arrays, which have at least as many.
    """
    rows = len(next(iter(arrays.values())))
    spread = np.arange(chunk) * rows // chunk
    return _mean(arrays, [spread + first for first in range(rows // chunk)])


def _mean(arrays: Arrays, chunks: Sequence[NDArray[np.intp]]) -> float:
    """Return the bytes of one row, where each chunk holds the rows of these numbers."""
    total = sum(
        len(zstd.compress(array[rows], ZSTD_LEVEL, True)) + CRC_BYTES
        for array in arrays.values()
        for rows in chunks
    )
    return total / sum(len(rows) for rows in chunks)
