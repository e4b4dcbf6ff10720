"""Read the metadata and the shards of format v1's arrays, and write the metadata.

zarr-python writes the shards; reading them here, from bytes that were already checked against the
commit, is 3-4 times faster than through zarr and lets every size be capped before anything is
allocated: a 32 kB zstd frame can declare a gigabyte.  Any zarr v3 client reads the same objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import VLenUTF8, zstd
from numpy.typing import NDArray

from logitstore.errors import Damaged
from logitstore.format.documents import canonical, parse_json
from logitstore.format.grid import FLAT_CHUNK_ROWS, FLAT_SHARD_ROWS, Grid

ZSTD_LEVEL = 3
"""Compression level of what we write; any level can be read."""

_MOST_ZSTD_LEVEL = 22

_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "int32": "<i4",
}

_MISSING = 0xFFFFFFFFFFFFFFFF
"""The offset and the length of a chunk that is absent."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_READ_CAP_BYTES = 256 << 20
_CRC_BYTES = 4

_LEAST_CHUNK_BYTES = 16
"""Bytes that every chunk has: a zstd frame's header, a block and a checksum, and the CRC-32C."""


@dataclass(frozen=True)
class ArrayLayout:
    """Describes one array by its ``zarr.json``: (V, N, K) codes of rows, or (N,) labels or keys.

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
        """The grid by which the rows are cut into shards; a flat array has one view."""
        views = self.shape[0] if len(self.shape) == 3 else 1
        return Grid(self.samples, views, self.rows_per_shard)

    @classmethod
    def parse(cls, where: str, data: bytes) -> ArrayLayout:
        """Read ``zarr.json``; anything but format v1's exact layout is refused, sizes included."""
        try:
            document: dict[str, Any] = parse_json(where, data)
            shape = tuple(int(extent) for extent in document["shape"])
            rows = -2 if len(shape) == 3 else 0
            sharding = document["codecs"][0]["configuration"]
            kind, level = document["data_type"], sharding["codecs"][1]["configuration"]["level"]
            layout = cls(
                dtype=None if kind == "string" else _DTYPES[kind],
                shape=shape,
                rows_per_shard=int(document["chunk_grid"]["configuration"]["chunk_shape"][rows]),
                rows_per_chunk=int(sharding["chunk_shape"][rows]),
            )
            plain = {"storage_transformers": [], **document, "attributes": {}}
            expected = layout._document(kind, min(int(level), _MOST_ZSTD_LEVEL))
            same = canonical(plain) == canonical(expected)
            same = same and isinstance(document.get("attributes", {}), dict)
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise Damaged(f"{where}: not the metadata of a format v1 array ({error!r})") from None
        if not same:
            raise Damaged(f"{where}: the array's layout or codecs are not those of format v1")
        layout._check_sizes(where)
        return layout

    def _document(self, kind: str, level: int) -> dict[str, Any]:
        """Return the whole ``zarr.json`` of an array of this data type, compressed at ``level``."""
        little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        text: dict[str, Any] = {"name": "vlen-utf8", "configuration": {}}
        one_byte = self.dtype is not None and np.dtype(self.dtype).itemsize == 1
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": kind,
            "chunk_grid": _named("regular", chunk_shape=self._extent(self.rows_per_shard)),
            "chunk_key_encoding": _named("default", separator="/"),
            "fill_value": "" if self.dtype is None else np.zeros((), self.dtype).item(),
            "codecs": [
                _named(
                    "sharding_indexed",
                    chunk_shape=self._extent(self.rows_per_chunk),
                    codecs=[
                        text if self.dtype is None else {"name": "bytes"} if one_byte else little,
                        _named("zstd", level=level, checksum=True),
                        {"name": "crc32c"},
                    ],
                    index_codecs=[little, {"name": "crc32c"}],
                    index_location="end",
                )
            ],
            "attributes": {},
            "storage_transformers": [],
        }

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
            and (len(self.shape) == 3 or (rows, chunk) == (FLAT_SHARD_ROWS, FLAT_CHUNK_ROWS))
            and rows * self.width * item <= _READ_CAP_BYTES
        )
        if not usable:
            raise Damaged(
                f"{where}: shape {self.shape}, {rows} rows a shard and {chunk} a chunk exceed what "
                f"format v1 allows ({_READ_CAP_BYTES >> 20} MiB a shard)"
            )


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def decode_shard(where: str, layout: ArrayLayout, data: bytes, rows: int) -> NDArray[Any]:
    """Return the first ``rows`` rows of a shard whose sha256 was checked: (rows, K), or (rows,).

    The checksums inside are not computed again (``check_checksums`` does): the sha256 covers them.
    """
    index, content = _index_and_content(where, layout, data)
    frames = []
    for offset, length in index[: math.ceil(rows / layout.rows_per_chunk)].tolist():
        if not _inside(offset, length, len(content)):
            raise Damaged(f"{where}: its index points outside the shard or leaves a chunk out")
        frames.append(content[offset : offset + length - _CRC_BYTES])
    if layout.dtype is None:
        return _decode_strings(where, layout, frames, rows)
    return _decode_numbers(where, layout, frames, rows)


def check_checksums(where: str, layout: ArrayLayout, data: bytes) -> None:
    """Refuse a shard with a wrong CRC-32C in it, of the index or of a chunk, also beyond N.

    Our reads are covered by the sha256 and would not notice; every other zarr client would fail.
    """
    index, content = _index_and_content(where, layout, data)
    if not _crc_holds(memoryview(data)[len(content) :]):
        raise Damaged(f"{where}: the CRC-32C of its index is wrong: other zarr clients fail here")
    for number, (offset, length) in enumerate(index.tolist()):
        if offset == length == _MISSING:
            continue
        if not _inside(offset, length, len(content)):
            raise Damaged(f"{where}: its index points outside the shard")
        if not _crc_holds(content[offset : offset + length]):
            raise Damaged(
                f"{where}: the CRC-32C of chunk {number} is wrong: other zarr clients fail here"
            )


def _index_and_content(
    where: str, layout: ArrayLayout, data: bytes
) -> tuple[NDArray[np.uint64], memoryview]:
    """Return the index of a shard, (chunks, 2) offsets and lengths, and the bytes before it."""
    chunks = layout.rows_per_shard // layout.rows_per_chunk
    content = len(data) - 16 * chunks - _CRC_BYTES
    if content < 0:
        raise Damaged(f"{where}: {len(data)} bytes cannot hold an index of {chunks} chunks")
    index = np.frombuffer(data, "<u8", 2 * chunks, content).reshape(chunks, 2)
    return index, memoryview(data)[:content]


def _inside(offset: int, length: int, content: int) -> bool:
    return length >= _LEAST_CHUNK_BYTES and offset + length <= content


def _crc_holds(part: memoryview) -> bool:
    """Return whether some bytes end with the CRC-32C of those before it."""
    crc: int = google_crc32c.value(np.frombuffer(part[:-_CRC_BYTES], np.uint8))
    return int.from_bytes(part[-_CRC_BYTES:], "little") == crc


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
        except ValueError as error:
            raise Damaged(f"{where}: chunk {number} is not text: {error}") from None
    return np.concatenate(parts)[:rows]


def _decompress(where: str, frame: memoryview, target: NDArray[np.uint8]) -> None:
    try:
        zstd.decompress(frame, target)
    except (RuntimeError, ValueError) as error:
        raise Damaged(f"{where}: {error}") from None


def _declared_size(frame: memoryview) -> int | None:
    """Return the content size that a zstd frame's header declares (RFC 8878, 3.1.1.1), or None."""
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
