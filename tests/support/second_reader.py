"""A reader of stores that was written from FORMAT.md alone: NumPy, zstd, and nothing of ours.

It is as strict as the document where that says MUST, and does no more.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

ABSENT = 2**64 - 1
PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class Refused(Exception):
    """The store is not one of version 1."""


def expect(truth: bool, what: str) -> None:
    if not truth:
        raise Refused(what)


def canonical(document: object) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return (text + "\n").encode()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Reader:
    """One snapshot: ``logits(view)`` (N, C), ``labels`` (N,) and ``keys``, a list or None."""

    def __init__(self, store: Path, name: str) -> None:
        self.store, self.folder = store, f"snapshots/{name}"
        data = (store / self.folder / "commit.json").read_bytes()
        commit = json.loads(data)
        expect(canonical(commit) == data, "the commit is not canonical")
        expect(set(commit) == {"format_version", "objects", "sha256", "snapshot"}, "its members")
        own = commit.pop("sha256")
        expect(hashlib.sha256(canonical(commit)).hexdigest() == own, "the commit's own sha256")
        expect(commit["snapshot"] == name and commit["format_version"] == 1, "another's commit")
        self.root = hashlib.sha256(data).hexdigest()
        self.objects: dict[str, Any] = commit["objects"]
        self.classes: int = self._attributes("zarr.json")["classes"]
        self.meta = self._attributes(f"{self.folder}/zarr.json")
        self.kind: str = self.meta["encoding"]["name"]
        self.parameters: dict[str, int] = self.meta["encoding"]["parameters"]
        self.labels: NDArray[np.int32] = self._flat("labels")
        self.keys: list[str] | None = self._flat("keys") if "keys/c/0" in self.objects else None
        self._digests: bool = self.meta.get("row_digests", False)
        self._check_listing()
        self._check_digest()

    def _object(self, key: str) -> bytes:
        data, entry = (self.store / key).read_bytes(), self.objects[key]
        expect(len(data) == entry["length"], f"length of {key}")
        expect(hashlib.sha256(data).hexdigest() == entry["sha256"], f"sha256 of {key}")
        return data

    def _attributes(self, key: str) -> dict[str, Any]:
        document = json.loads(self._object(key))
        expect(set(document) == {"attributes", "node_type", "zarr_format"}, f"members of {key}")
        attributes: dict[str, Any] = document["attributes"]["logitstore"]
        return attributes

    def _arrays(self) -> dict[str, tuple[str, int]]:
        """Data type and W of each array of the encoding."""
        scalars = {"scalars": ("float32", 2)}
        if self.kind == "float32":
            return {"codes": ("float32", self.classes)}
        if self.kind in ("float16", "uint8"):
            return {"codes": (self.kind, self.classes), **scalars}
        expect(self.kind == "topk", f"unknown encoding {self.kind}")
        slots = self.parameters["k"] + 1
        index = "uint16" if self.classes <= 65536 else "uint32"
        return {"indices": (index, slots), "codes": ("float16", slots), **scalars}

    def _check_listing(self) -> None:
        samples, rows = self.meta["samples"], self.meta["rows_per_shard"]
        keys = {"zarr.json", "snapshots/zarr.json", f"{self.folder}/zarr.json"}
        for array in ["labels"] + ["keys"] * (self.keys is not None):
            keys |= {f"{array}/c/{number}" for number in range(math.ceil(samples / 2**20))}
            keys.add(f"{array}/zarr.json")
        for array in [*self._arrays(), *["row_digests"] * self._digests]:
            keys.add(f"{self.folder}/{array}/zarr.json")
            for view in range(self.meta["views"]):
                for number in range(math.ceil(samples / rows)):
                    keys.add(f"{self.folder}/{array}/c/{view}/{number}/0")
        expect(set(self.objects) == keys, "the commit lists other objects")
        expect(all(PATH.fullmatch(key) for key in keys), "a key that is no path")

    def _check_digest(self) -> None:
        dataset = self._attributes("zarr.json")["dataset"]
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes())
        if self.keys is not None:
            digest.update(b"\0".join(key.encode() for key in self.keys))
        expect(digest.hexdigest() == dataset["sha256"], "the dataset's digest")

    def _frames(self, data: bytes, chunks: int, needed: int) -> list[bytes]:
        """The decompressed chunks of a shard that are needed; every checksum is computed."""
        content = len(data) - 16 * chunks - 4
        pairs = np.frombuffer(data, "<u8", 2 * chunks, content).reshape(chunks, 2).tolist()
        expect(crc32c(data[content:-4]).to_bytes(4, "little") == data[-4:], "CRC of an index")
        frames = []
        for number, (offset, length) in enumerate(pairs):
            if offset == length == ABSENT:
                expect(number >= needed, "a chunk is absent")
                continue
            frame, crc = data[offset : offset + length - 4], data[offset + length - 4 :][:4]
            expect(crc32c(frame).to_bytes(4, "little") == crc, "CRC of a chunk")
            frames.append(bytes(zstd.decompress(frame)))
        return frames[:needed]

    def _document(self, array: str, rows: int, shape: list[int], kind: str) -> int:
        """B of an array, of which everything else is known."""
        document = json.loads(self._object(f"{array}/zarr.json"))
        codecs = document["codecs"][0]["configuration"]
        flat = len(shape) == 1
        chunk: int = codecs["chunk_shape"][0 if flat else 1]
        expect(rows % chunk == 0, "B does not divide R")
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        first = {"string": {"name": "vlen-utf8", "configuration": {}}, "uint8": {"name": "bytes"}}
        level = codecs["codecs"][1]["configuration"]["level"]
        compress = {"name": "zstd", "configuration": {"level": level, "checksum": True}}
        expected = {
            "shape": shape,
            "data_type": kind,
            "chunk_grid": {"name": "regular", "configuration": {}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "" if kind == "string" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": {}}],
            "attributes": document["attributes"],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        expected["chunk_grid"]["configuration"] = {
            "chunk_shape": [rows] if flat else [1, rows, shape[2]]
        }
        expected["codecs"][0]["configuration"] = {
            "chunk_shape": [chunk] if flat else [1, chunk, shape[2]],
            "codecs": [first.get(kind, little), compress, {"name": "crc32c"}],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        expect(document == expected, f"{array} is another array")
        return chunk

    def _flat(self, array: str) -> Any:
        samples, kind = self.meta["samples"], {"labels": "int32", "keys": "string"}[array]
        chunk = self._document(array, 2**20, [samples], kind)
        parts: list[Any] = []
        for start in range(0, samples, 2**20):
            rows = min(2**20, samples - start)
            data = self._object(f"{array}/c/{start // 2**20}")
            frames = self._frames(data, 2**20 // chunk, math.ceil(rows / chunk))
            if kind == "string":
                parts += [text for frame in frames for text in strings(frame, chunk)][:rows]
            else:
                parts += np.frombuffer(b"".join(frames), "<i4")[:rows].tolist()
        return parts if kind == "string" else np.array(parts, np.int32)

    def _array(self, array: str, view: int, kind: str, width: int) -> NDArray[Any]:
        """All rows of a view, (N, W)."""
        samples, rows = self.meta["samples"], self.meta["rows_per_shard"]
        key = f"{self.folder}/{array}"
        chunk = self._document(key, rows, [self.meta["views"], samples, width], kind)
        parts = []
        for start in range(0, samples, rows):
            data = self._object(f"{key}/c/{view}/{start // rows}/0")
            here = min(rows, samples - start)
            frames = self._frames(data, rows // chunk, math.ceil(here / chunk))
            dtype = np.dtype(kind).newbyteorder("<")
            expect({len(frame) for frame in frames} == {chunk * width * dtype.itemsize}, "size")
            parts.append(np.frombuffer(b"".join(frames), dtype).reshape(-1, width)[:here])
        return np.concatenate(parts)

    def logits(self, view: int) -> NDArray[np.float32]:
        arrays = {n: self._array(n, view, *kind) for n, kind in self._arrays().items()}
        if self._digests:
            stored = self._array("row_digests", view, "uint8", 16)
            for sample, digest in enumerate(stored):
                row = b"".join(array[sample].tobytes() for array in arrays.values())
                own = hashlib.blake2b(row, digest_size=16).digest()
                expect(own == digest.tobytes(), f"the digest of sample {sample}")
        codes = arrays["codes"].astype(np.float32)
        if self.kind == "float32":
            return codes
        m, s = arrays["scalars"][:, :1], arrays["scalars"][:, 1:]
        if self.kind == "float16":
            return codes + m
        if self.kind == "uint8":
            return m - (s / np.float32((self.parameters["levels"] - 1) ** 2)) * (codes * codes)
        tail = self.classes - self.parameters["k"] - 1
        share = np.float32(math.log(tail)) if tail else np.float32(0)
        decoded = np.repeat(m + (s - share), self.classes, axis=1)
        expect(int(arrays["indices"].max()) < self.classes, "an index is not below C")
        for row, slots in enumerate(arrays["indices"].tolist()):
            decoded[row, slots] = m[row] + codes[row]
        return decoded


def strings(chunk: bytes, count: int) -> list[str]:
    """The strings of a decompressed chunk of keys."""
    expect(int.from_bytes(chunk[:4], "little") == count, "number of strings")
    texts, place = [], 4
    for _ in range(count):
        length = int.from_bytes(chunk[place : place + 4], "little")
        texts.append(chunk[place + 4 : place + 4 + length].decode())
        place += 4 + length
    expect(place == len(chunk), "bytes after the last string")
    return texts
