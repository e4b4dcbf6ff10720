from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from logitstore.format.arrays import ZSTD_LEVEL
from logitstore.format.cards import SnapshotPlan
from logitstore.format.encodings.base import Arrays, Encoding
from logitstore.format.encodings.table import encoding_of
from logitstore.format.grid import chunk_rows, shard_rows

_CRC_BYTES, _INDEX_BYTES = 4, 16


_DRAWS = 8


def row_bytes(entry: Encoding, arrays: Arrays) -> float:
    """Compressed bytes of one row like these, without metadata."""
    rows = len(next(iter(arrays.values())))
    chunk = chunk_rows(min(shard_rows(entry.widest), _under(rows)), entry.widest)
    whole = rows - rows % chunk
    return sum(_payload(array[:whole], chunk) for array in arrays.values()) / whole


def _under(count: int) -> int:
    """The largest power of two up to ``count``."""
    return 1 << (count.bit_length() - 1)


def shard_bytes(sample: NDArray[Any], rows: int, plan: SnapshotPlan) -> int:
    """Bytes of one array's shard of ``rows`` rows that are like ``sample`` (n, K)."""
    chunk = chunk_rows(plan.rows_per_shard, encoding_of(plan.encoding, plan.classes).widest)
    whole, rest = divmod(rows, len(sample))
    payload = whole * _payload(sample, chunk) if whole else 0
    if rest:
        spread = np.arange(rest) * len(sample) // rest
        draws = range(min(len(sample) // rest, _DRAWS))
        payload += sum(_payload(sample[spread + i], chunk) for i in draws) // len(draws)
    return payload + _INDEX_BYTES * (plan.rows_per_shard // chunk) + _CRC_BYTES


def _payload(rows: NDArray[Any], chunk: int) -> int:
    """Bytes of the inner chunks that hold these rows; the last one is padded with zeros."""
    padding = np.zeros((-len(rows) % chunk, rows.shape[1]), rows.dtype)
    pieces = np.concatenate([rows, padding]).reshape(-1, chunk * rows.shape[1])
    return sum(len(zstd.compress(piece, ZSTD_LEVEL, True)) + _CRC_BYTES for piece in pieces)
