"""Let zarr-python write our arrays through a Storage; nothing else writes with zarr.

The codecs are named one by one: zarr's defaults have no checksum and would hide damage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype

from logitstore.format.arrays import ZSTD_LEVEL
from logitstore.format.commits import ObjectEntry
from logitstore.storage import Storage


class WriterStore(Store):
    """A Storage as zarr sees it: every ``set`` is a durable put whose digest is kept.

    zarr reads an old shard before it writes a new one and stumbles over a damaged one, and it would
    create parent groups with other bytes than ours: it is told that nothing exists but what it has
    written itself in this process.
    """

    supports_writes = True
    supports_deletes = False
    supports_listing = False

    def __init__(self, storage: Storage) -> None:
        super().__init__(read_only=False)
        self._storage = storage
        self._documents: dict[str, Buffer] = {}
        self.entries: dict[str, ObjectEntry] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return self._documents.get(key)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [self._documents.get(key) for key, _ in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self._documents

    async def set(self, key: str, value: Buffer) -> None:
        data = value.as_numpy_array().tobytes()
        self._storage.put(key, data)
        self.entries[key] = ObjectEntry.of(data)
        if key.endswith("zarr.json"):
            self._documents[key] = value

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Ignore zarr's implicit parent groups: this file writes the groups itself."""

    async def delete(self, key: str) -> None:
        raise AssertionError(f"zarr asked to delete {key}; empty chunks are always written")

    async def _no_keys(self, prefix: str = "") -> AsyncIterator[str]:
        keys: tuple[str, ...] = ()
        for key in keys:
            yield key

    list = list_prefix = list_dir = _no_keys


def create_array(
    store: WriterStore, name: str, dtype: str | None, shape: tuple[int, ...], rows: tuple[int, int]
) -> zarr.Array[Any]:
    """Create an array in format v1's layout; ``rows`` are those of a shard and of a chunk."""
    shard, chunk = (
        ((1, rows[0], shape[2]), (1, rows[1], shape[2]))
        if len(shape) == 3
        else ((rows[0],), (rows[1],))
    )
    return zarr.create_array(
        store,
        name=name,
        shape=shape,
        dtype=dtype or "str",
        shards=shard,
        chunks=chunk,
        filters=None,
        serializer="auto" if dtype is None else BytesCodec(endian="little"),
        compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
