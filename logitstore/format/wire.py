"""Write and read the bodies of HTTP messages: rows as safetensors, indices as uint32, JSON.

Server and client both import this file, and nothing of each other.  Rows travel as they are stored;
the client decodes them.  ``api/HTTP.md`` describes the protocol for other languages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import google_crc32c
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError

from logitstore.errors import Damaged, InputError
from logitstore.format.cards import SnapshotMeta, StoreMeta
from logitstore.format.documents import Document
from logitstore.format.encodings.base import Encoding
from logitstore.format.encodings.rows import Rows

CRC_HEADER, ROOT_HEADER = "x-logitstore-crc32c", "x-logitstore-root"
"""Headers with the CRC-32C of the body, and with the root of the snapshot that is read."""

ROWS_TYPE, INDICES_TYPE = "application/x-safetensors", "application/octet-stream"
"""Content types of rows and of packed indices."""

PROBLEM_TYPE = "application/problem+json"
"""Content type of a problem document."""

PROBLEM = "urn:logitstore:"
"""Beginning of a problem document's ``type``; one word follows."""

DAMAGED = PROBLEM + "damaged"
"""The ``type`` of the problem that the data is damaged at the server."""

MAX_INDICES, MAX_ROWS_BYTES = 4096, 16 << 20
"""Most indices in one request, and most bytes of all arrays in its answer, if not of one row."""


def rows_per_request(form: Encoding) -> int:
    """Return how many rows one request may ask for: at most 4,096 and 16 MiB, at least one."""
    return max(1, min(MAX_INDICES, MAX_ROWS_BYTES // form.bytes_per_row))


def pack(rows: Rows) -> bytes:
    """Write encoded rows as one safetensors document; the arrays are copied as they are."""
    arrays = {name: np.ascontiguousarray(array) for name, array in rows.arrays.items()}
    return safetensors.numpy.save(arrays)


@dataclass(frozen=True, kw_only=True)
class Template:
    """Holds the header of a safetensors document of ``length`` bytes, and the places of its arrays.

    A place is an array's name, shape, dtype and first byte.
    """

    header: NDArray[np.uint8]
    length: int
    places: tuple[tuple[str, tuple[int, int], np.dtype[Any], int], ...]

    def arrays(self, body: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Write the header into ``body``, (length,), and return the arrays that lie in it."""
        body[: len(self.header)] = self.header
        return {name: np.ndarray(shape, kind, body, at) for name, shape, kind, at in self.places}


@lru_cache(maxsize=256)
def template(form: Encoding, count: int) -> Template:
    """Return the template of what ``pack`` writes for ``count`` rows; batches have one size."""
    row = pack(Rows(form, form.empty(1)))
    row_header = json.loads(row[8 : 8 + int.from_bytes(row[:8], "little")])
    entries, kinds, stop = {}, {}, 0
    for name, entry in row_header.items():  # in the library's order, which is that of the bytes
        kinds[name], width = np.dtype(form.layout[name][0]), form.layout[name][1]
        start, stop = stop, stop + count * width * kinds[name].itemsize
        entries[name] = {**entry, "shape": (count, width), "data_offsets": [start, stop]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    places = tuple(
        (name, entry["shape"], kinds[name], len(header) + entry["data_offsets"][0])
        for name, entry in entries.items()
    )
    return Template(
        header=np.frombuffer(header, np.uint8), length=len(header) + stop, places=places
    )


def unpack(data: bytes, form: Encoding, *, count: int) -> Rows:
    """Read ``count`` rows that ``pack`` wrote.

    Damaged if the bytes are not safetensors of exactly that encoding's arrays, dtypes and shapes.
    """
    try:
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise Damaged(f"rows: {len(data)} bytes that are not safetensors: {error}") from None
    received = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    expected = {
        name: (np.dtype(kind), (count, width)) for name, (kind, width) in form.layout.items()
    }
    if received != expected:
        raise Damaged(f"rows: arrays {received}, expected {expected}")
    return Rows(form, {name: arrays[name] for name in expected})


def pack_indices(indices: NDArray[np.int64]) -> bytes:
    """Write sample indices (N,) as little-endian uint32; InputError beyond 2**32 - 1."""
    if len(indices) and int(indices.max()) >= 1 << 32:
        raise InputError(f"sample {indices.max()} does not fit into the protocol's uint32")
    return indices.astype("<u4").tobytes()


def unpack_indices(data: bytes) -> NDArray[np.int64]:
    """Read packed indices as int64 (N,); InputError if the length is no multiple of 4."""
    if len(data) % 4:
        raise InputError(
            f"{len(data)} bytes of indices: not a whole number of little-endian uint32"
        )
    return np.frombuffer(data, "<u4").astype(np.int64)


def crc32c(data: bytes | NDArray[np.uint8]) -> str:
    """Return the CRC-32C (Castagnoli) as eight hexadecimal digits."""
    return f"{google_crc32c.value(data):08x}"


class Reply(Document):
    """Describes a server's answer; fields that a newer server adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StoreEntry(Reply):
    """One line of ``GET /v1/stores``; ``damaged`` names the snapshots that cannot be opened.

    Of an ``unreadable`` store only the name is known.
    """

    name: str
    classes: int = 0
    samples: int = 0
    dataset: str = ""
    snapshots: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    unreadable: bool = False


class SnapshotEntry(Reply):
    """One snapshot in ``GET /v1/stores/{store}``; ``bytes`` are those of its objects on disk."""

    name: str
    root: str
    views: int
    samples: int
    classes: int
    encoding: str
    top1: float | None
    bytes: int


class StoreReply(Reply):
    """``GET /v1/stores/{store}``; ``damaged`` names the snapshots that cannot be opened."""

    name: str
    meta: StoreMeta
    snapshots: tuple[SnapshotEntry, ...]
    damaged: tuple[str, ...] = ()


class SnapshotReply(Reply):
    """``GET /v1/stores/{store}/snapshots/{snapshot}``."""

    root: str
    meta: SnapshotMeta


class RowsRequest(BaseModel):
    """The JSON body of ``POST …/rows``; the other form is ``?view=`` and packed indices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: int = 0
    indices: Annotated[tuple[int, ...], Field(max_length=MAX_INDICES, fail_fast=True)]


class Problem(Reply):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
