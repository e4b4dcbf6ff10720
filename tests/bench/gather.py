"""Compare shuffled batches of rows from the decoded copy with other ways to keep the same bytes.

Each side turns indices into new arrays in memory.  One batch is compared byte by byte before
anything is timed.  All files are in the page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.cache.copy import Copy
from logitstore.reading.snapshot import Snapshot
from tests.bench.harness import Side, Sides, per_second
from tests.bench.materialise import copy_of, reader_of
from tests.bench.peers import PEERS, Records
from tests.bench.workplace import Workplace, disk_bytes, open_synthetic, shuffled_batches


@contextmanager
def codes(place: Workplace) -> Iterator[Sides]:
    """Compare the codes alone, from the copy that ``rows`` gathers from, with a memory map."""
    copy = place.once(copy_of)
    alone = Copy(copy.index, {"codes": copy.arrays["codes"]}, made=False)
    stored = place.once(open_memmaps)["codes"]

    def ours(indices: NDArray[np.int64]) -> Any:
        return alone.take(indices, 0)

    def theirs(indices: NDArray[np.int64]) -> Any:
        return {"codes": stored[indices]}

    _check_equal(place, ours, theirs)
    yield Sides(ours=_rate(place, ours), theirs=_rate(place, theirs), repeats=place.sizes.repeats)


@contextmanager
def against(place: Workplace, peer: str) -> Iterator[Sides]:
    """Compare a copy's ``rows`` with a peer that gives codes and scalars of the same samples."""
    snapshot, reader = place.once(open_synthetic), place.once(reader_of)

    def ours(indices: NDArray[np.int64]) -> Any:
        return reader.rows(indices).arrays

    with _opened(place, peer) as (read, share, peer_bytes):
        _check_equal(place, ours, read)
        yield Sides(
            ours=_rate(place, ours),
            theirs=_rate(place, read, share),
            repeats=place.sizes.repeats,
            facts={
                "store B/row": _stored(snapshot) / place.sizes.rows,
                "peer B/row": peer_bytes / place.sizes.rows,
            },
        )


def as_records(rows: Any) -> Records:
    """Put the arrays of some rows side by side: uint8 (N, bytes of a row)."""
    if not isinstance(rows, Mapping):
        records: Records = rows
        return records
    parts = [np.ascontiguousarray(array) for array in rows.values()]
    return np.hstack([part.view(np.uint8).reshape(len(part), -1) for part in parts])


def make_records(place: Workplace) -> Records:
    """Return every row of the synthetic store, as records."""
    return as_records(place.once(reader_of).rows(np.arange(place.sizes.rows)).arrays)


def open_memmaps(place: Workplace) -> dict[str, NDArray[Any]]:
    """Write the store's arrays as uncompressed .npy files, and map them."""
    folder = place.new_folder("memmap")
    rows = place.once(reader_of).rows(np.arange(place.sizes.rows))
    for name, array in rows.arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in rows.arrays}


def _stored(snapshot: Snapshot) -> int:
    return disk_bytes(Path(snapshot.url) / "snapshots" / snapshot.name)


def _check_equal(place: Workplace, ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    """Compare one batch, with one sample twice, byte by byte."""
    first = shuffled_batches(place, 1)[0].copy()
    first[-1] = first[0]
    assert np.array_equal(as_records(ours(first)), as_records(theirs(first)))


def _rate(place: Workplace, gather: Callable[..., Any], share: float = 1.0) -> Side:
    """Make a side that measures rows per second over a share of the batches."""
    batches = shuffled_batches(place, max(1, round(share * place.sizes.batches)))

    def run() -> None:
        for indices in batches:
            gather(indices)

    return per_second(batches.size, run)


@contextmanager
def _opened(place: Workplace, peer: str) -> Iterator[tuple[Any, float, int]]:
    """Yield the peer's reader, the share of the batches it is timed on, and its bytes on disk."""
    if peer == "memmap":
        maps = place.once(open_memmaps)
        size = sum(array.nbytes for array in maps.values())
        yield lambda indices: {name: array[indices] for name, array in maps.items()}, 1.0, size
    elif peer == "zarr-same":
        snapshot = place.once(open_synthetic)
        yield _read_arrays(snapshot), 0.004, _stored(snapshot)
    else:
        entry = PEERS[peer]
        entry.check()
        path = place.new_folder(peer) / "records"
        rows_per_shard = place.once(open_synthetic).meta.rows_per_shard
        entry.write(path, place.once(make_records), rows_per_shard)
        with entry.open(path) as read:
            yield read, entry.share, disk_bytes(path)


def _read_arrays(snapshot: Snapshot) -> Callable[..., Any]:
    """Return a reader that uses zarr-python on the store's own files."""
    import zarr

    group = zarr.open_group(snapshot.url, mode="r")
    arrays = {name: group[f"snapshots/{snapshot.name}/{name}"] for name in snapshot.encoding.layout}
    return lambda indices: {name: array.oindex[0, indices] for name, array in arrays.items()}
