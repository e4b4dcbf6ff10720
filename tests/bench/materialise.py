"""Compare making a decoded copy (fetch, verify, decode, fsync) with copying the decoded bytes.

Both read from the page cache, write a new file and fsync it, so that a slow disk slows both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import numpy as np

from logitstore.cache.cache import Cache
from logitstore.cache.copy import Copy
from logitstore.cache.readers import CopyReader
from tests.bench.harness import Sides
from tests.bench.workplace import Workplace, open_synthetic

_MOST_BYTES = 64 << 30
_PIECE_BYTES = 8 << 20


def copy_of(place: Workplace) -> Copy:
    """Return the synthetic store's mapped copy."""
    cache = Cache(place.new_folder("cache"), _MOST_BYTES)
    return cache.copy_of(place.once(open_synthetic), in_memory=False)


def reader_of(place: Workplace) -> CopyReader:
    """Return a reader of the synthetic snapshot whose rows come from that copy."""
    return CopyReader(place.once(open_synthetic), place.once(copy_of))


@contextmanager
def whole(place: Workplace) -> Iterator[Sides]:
    """Compare with an empty cache in each turn; copies are removed outside the measured time."""
    snapshot, copy = open_synthetic(place), place.once(copy_of)
    assert copy.path is not None
    files = [path for path in copy.path.iterdir() if path.is_file()]
    folder = place.new_folder("copies")

    def ours() -> float:
        begun = time.perf_counter()
        fresh = Cache(folder / "ours", _MOST_BYTES).copy_of(snapshot, in_memory=False)
        spent = time.perf_counter() - begun
        assert fresh.made
        for name, array in fresh.arrays.items():
            assert np.array_equal(array[:, -1], copy.arrays[name][:, -1])
        del fresh
        rmtree(folder / "ours")
        return spent

    def theirs() -> float:
        (folder / "theirs").mkdir()
        begun = time.perf_counter()
        for file in files:
            _copy_synced(file, folder / "theirs" / file.name)
        _sync(folder / "theirs")
        spent = time.perf_counter() - begun
        rmtree(folder / "theirs")
        return spent

    facts = {"rows": place.sizes.rows, "decoded bytes": copy.bytes}
    yield Sides(ours=ours, theirs=theirs, repeats=place.sizes.repeats, facts=facts)


def _copy_synced(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        while piece := read.read(_PIECE_BYTES):
            written.write(piece)
        written.flush()
        os.fsync(written.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
