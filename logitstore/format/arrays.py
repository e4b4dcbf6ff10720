"""Format v1's arrays: which zarr metadata they have and how one shard's bytes become rows.

zarr-python writes the shards; reading them here, from bytes that were already checked against the
commit, is 3-4 times faster than through zarr and lets every size be capped before anything is
allocated: a 32 kB zstd frame can declare a gigabyte.  Any zarr v3 client reads the same objects.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import VLenUTF8, zstd
from numpy.typing import NDArray

from logitstore.errors import Damaged
from logitstore.format.grid import FLAT_SHARD_ROWS, Grid

ZSTD_LEVEL = 3


_INDEX_CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "crc32c"},
]


_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "int32": "<i4",
}


_MISSING = np.uint64(0xFFFFFFFFFFFFFFFF)


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


_READ_CAP_BYTES = 256 << 20


@dataclass(frozen=True)
class ArrayLayout:
    """One array's ``zarr.json``: (V, N, K) rows of codes, or (N,) labels or keys.

    ``dtype`` is a NumPy type string, or None for UTF-8 strings.
    """

    dtype: str | None
    shape: tuple[int, ...]
    rows_per_shard: int
    rows_per_chunk: int

    @property
    def samples(self) -> int:
        return self.shape[-2] if len(self.shape) == 3 else self.shape[0]

    @property
    def width(self) -> int:
        return self.shape[-1] if len(self.shape) == 3 else 1

    @property
    def grid(self) -> Grid:
        """How the array's rows are cut into shards; a flat array has one view."""
        views = self.shape[0] if len(self.shape) == 3 else 1
        return Grid(self.samples, views, self.rows_per_shard)

    @classmethod
    def parse(cls, where: str, data: bytes) -> ArrayLayout:
        """Read ``zarr.json``; anything but format v1's exact layout is refused, sizes included."""
        try:
            document: dict[str, Any] = json.loads(data)
            grid = document["chunk_grid"]["configuration"]["chunk_shape"]
            sharding = document["codecs"][0]["configuration"]
            inner = sharding["chunk_shape"]
            shape = tuple(int(extent) for extent in document["shape"])
            kind = document["data_type"]
            strings = kind == "string"
            layout = cls(
                dtype=None if strings else _DTYPES[kind],
                shape=shape,
                rows_per_shard=int(grid[-2] if len(shape) == 3 else grid[0]),
                rows_per_chunk=int(inner[-2] if len(shape) == 3 else inner[0]),
            )
            same = (
                len(document["codecs"]) == 1
                and document["codecs"][0]["name"] == "sharding_indexed"
                and document["zarr_format"] == 3
                and document["node_type"] == "array"
                and document["chunk_grid"]["name"] == "regular"
                and document["chunk_key_encoding"]
                == {"name": "default", "configuration": {"separator": "/"}}
                and sharding["index_location"] == "end"
                and sharding["index_codecs"] == _INDEX_CODECS
                and list(grid) == layout._extent(layout.rows_per_shard)
                and list(inner) == layout._extent(layout.rows_per_chunk)
                and _codecs_match(sharding["codecs"], strings=strings)
            )
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise Damaged(f"{where}: not the metadata of a format v1 array ({error!r})") from None
        if not same:
            raise Damaged(f"{where}: the array's layout or codecs are not those of format v1")
        layout._check_sizes(where)
        return layout

    def _extent(self, rows: int) -> list[int]:
        return [1, rows, self.width] if len(self.shape) == 3 else [rows]

    def _check_sizes(self, where: str) -> None:
        rows, chunk = self.rows_per_shard, self.rows_per_chunk
        item = np.dtype(self.dtype).itemsize if self.dtype else 1
        usable = (
            len(self.shape) in (1, 3)
            and all(0 < extent < 1 << 48 for extent in self.shape)
            and 0 < chunk <= rows <= FLAT_SHARD_ROWS
            and rows % chunk == 0
            and rows * self.width * item <= _READ_CAP_BYTES
        )
        if not usable:
            raise Damaged(
                f"{where}: shape {self.shape}, {rows} rows a shard and {chunk} a chunk exceed what "
                f"format v1 allows ({_READ_CAP_BYTES >> 20} MiB a shard)"
            )


def _codecs_match(codecs: list[Any], *, strings: bool) -> bool:
    serializer, compressor, checksum = codecs
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    text = {"name": "vlen-utf8", "configuration": {}}
    return (
        serializer in ([text] if strings else [little, {"name": "bytes"}])
        and compressor["name"] == "zstd"
        and compressor["configuration"]["checksum"] is True
        and checksum["name"] == "crc32c"
    )


def decode_shard(where: str, layout: ArrayLayout, data: bytes, rows: int) -> NDArray[Any]:
    """The first ``rows`` rows of a shard whose bytes were verified: (rows, K), or (rows,) if flat.

    The checksums inside are not computed again: the sha256 in the commit covers them.
    """
    chunks = layout.rows_per_shard // layout.rows_per_chunk
    index_bytes = 16 * chunks + 4
    if len(data) < index_bytes:
        raise Damaged(f"{where}: {len(data)} bytes cannot hold an index of {chunks} chunks")
    index = np.frombuffer(data, "<u8", 2 * chunks, len(data) - index_bytes).reshape(chunks, 2)
    needed = math.ceil(rows / layout.rows_per_chunk)
    view = memoryview(data)
    frames = []
    for offset, length in index[:needed]:
        if offset == _MISSING or int(offset) + int(length) > len(data) - index_bytes or length < 16:
            raise Damaged(f"{where}: its index points outside the shard or leaves a chunk out")
        frames.append(view[int(offset) : int(offset) + int(length) - 4])
    if layout.dtype is None:
        return _decode_strings(where, layout, frames, rows)
    return _decode_numbers(where, layout, frames, rows)


def _decode_numbers(
    where: str, layout: ArrayLayout, frames: list[memoryview], rows: int
) -> NDArray[Any]:
    padded = np.empty((len(frames) * layout.rows_per_chunk, layout.width), layout.dtype)
    chunk_bytes = padded.nbytes // max(1, len(frames))
    target = padded.reshape(-1).view(np.uint8)
    for number, frame in enumerate(frames):
        if _declared_size(frame) != chunk_bytes:
            raise Damaged(f"{where}: chunk {number} does not declare its {chunk_bytes} bytes")
        _decompress(where, frame, target[number * chunk_bytes : (number + 1) * chunk_bytes])
    return padded[:rows] if len(layout.shape) == 3 else padded[:rows, 0]


def _decode_strings(
    where: str, layout: ArrayLayout, frames: list[memoryview], rows: int
) -> NDArray[Any]:
    parts: list[NDArray[Any]] = []
    for number, frame in enumerate(frames):
        size = _declared_size(frame)
        if size is None or not 4 <= size <= _READ_CAP_BYTES // 4:
            raise Damaged(f"{where}: chunk {number} declares {size} bytes of text")
        text = np.empty(size, np.uint8)
        _decompress(where, frame, text)
        # The text begins with how many strings follow, which the decoder allocates unasked.
        if int.from_bytes(text[:4].tobytes(), "little") != layout.rows_per_chunk:
            raise Damaged(f"{where}: chunk {number} does not hold {layout.rows_per_chunk} strings")
        try:
            parts.append(VLenUTF8().decode(text.tobytes()))
        except (ValueError, UnicodeDecodeError) as error:
            raise Damaged(f"{where}: chunk {number} is not text: {error}") from None
    return np.concatenate(parts)[:rows]


def _decompress(where: str, frame: memoryview, target: NDArray[np.uint8]) -> None:
    try:
        zstd.decompress(frame, target)
    except (RuntimeError, ValueError) as error:
        raise Damaged(f"{where}: {error}") from None


def _declared_size(frame: memoryview) -> int | None:
    """The content size that a zstd frame's header declares (RFC 8878, 3.1.1.1), or None."""
    if bytes(frame[:4]) != _ZSTD_MAGIC:
        return None
    descriptor = frame[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[flag]
    if not width:
        return None
    size = int.from_bytes(frame[start : start + width], "little")
    return size + 256 if width == 2 else size
