from __future__ import annotations

from typing import NamedTuple

MAX_SHARD_ROWS, MAX_SHARD_BYTES = 16_384, 32 << 20


MAX_CHUNK_ROWS, MAX_CHUNK_BYTES = 512, 1 << 20


FLAT_SHARD_ROWS, FLAT_CHUNK_ROWS = 1 << 20, 1 << 14


def shard_rows(bytes_per_row: int) -> int:
    """Rows of a shard: the largest power of two <= 16,384 whose decoded bytes are <= 32 MiB."""
    fitting = max(1, MAX_SHARD_BYTES // bytes_per_row)
    return int(min(MAX_SHARD_ROWS, 1 << (fitting.bit_length() - 1)))


def chunk_rows(rows_per_shard: int, bytes_per_row: int) -> int:
    """Rows of an inner chunk: a power of two, at most 512, the shard's rows and 1 MiB."""
    fitting = max(1, MAX_CHUNK_BYTES // bytes_per_row)
    return int(min(MAX_CHUNK_ROWS, rows_per_shard, 1 << (fitting.bit_length() - 1)))


class Shard(NamedTuple):
    """One view's samples ``start .. stop-1``: the unit of work, of resume and of verification."""

    view: int
    start: int
    stop: int
