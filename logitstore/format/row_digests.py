"""Compute the digest of each row: 16 bytes that bind a row which a server sends to the root.

A snapshot may have one more array, ``row_digests``, which holds them.  It is committed as the other
arrays are, so that whoever knows the root can tell a row of the snapshot from any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from logitstore.format.encodings.base import Encoding, Layout
from logitstore.format.encodings.rows import Rows
from logitstore.values import RowDigests

ROW_DIGESTS = "row_digests"
"""Name of the array."""

DIGEST_BYTES = 16
"""Bytes of a digest."""

LEAST_ROW_BYTES = 128
"""Bytes of the smallest row that gets a digest unasked: it adds at most an eighth to the row."""

_BLOCK_BYTES = 1 << 20
"""Bytes of rows that are laid side by side at a time: they stay in the processor's cache."""


def wanted(choice: RowDigests, encoding: Encoding) -> bool:
    """Return whether rows of this encoding get digests."""
    return choice == "yes" or (choice == "auto" and encoding.bytes_per_row >= LEAST_ROW_BYTES)


def stored_layout(encoding: Encoding, *, digests: bool) -> Layout:
    """Return the arrays that a snapshot stores: those of its encoding, and the digests if any."""
    return {**encoding.layout, ROW_DIGESTS: ("|u1", DIGEST_BYTES)} if digests else encoding.layout


def digests_of(rows: Rows) -> NDArray[np.uint8]:
    """Return the digest of each row, (N, 16): BLAKE2b of the bytes of its arrays, one by one."""
    step = max(1, _BLOCK_BYTES // rows.encoding.bytes_per_row)
    parts = (rows.part(slice(start, start + step)) for start in range(0, len(rows), step))
    joined = b"".join([digest for part in parts for digest in _digests(part)])
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)


def _digests(rows: Rows) -> Iterator[bytes]:
    arrays = [
        np.ascontiguousarray(rows.arrays[name], kind).view(np.uint8)
        for name, (kind, _) in rows.encoding.layout.items()
    ]
    data, width = np.hstack(arrays).reshape(-1).data, rows.encoding.bytes_per_row
    for start in range(0, len(data), width):
        yield blake2b(data[start : start + width], digest_size=DIGEST_BYTES).digest()
