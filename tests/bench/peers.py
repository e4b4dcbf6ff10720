"""Other libraries that keep rows of bytes on a disk, each used as its documentation recommends.

A peer gets ``records``, uint8 (N, bytes of a row): the codes and scalars of each sample side by
side.  It returns them for any indices, in their order.  All files are in the page cache when time
is measured.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.harness import NotRun

Records = NDArray[np.uint8]
Read = Callable[[NDArray[np.int64]], Records]

CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Peer:
    """``write(path, records, rows_per_shard)``; ``open(path)`` gives the call that reads rows.

    ``share`` of the batches is enough to time it: some are thousands of times slower.
    """

    write: Callable[[Path, Records, int], object]
    open: Callable[[Path], AbstractContextManager[Read]]
    share: float
    package: str | None = None

    def check(self) -> None:
        """Raise NotRun if its package, of the dependency group ``bench``, is not installed."""
        if self.package is not None and find_spec(self.package) is None:
            raise NotRun(f"{self.package} is not installed (make bench installs it)")


def write_lmdb(path: Path, records: Records, rows_per_shard: int) -> None:
    import lmdb

    with (
        lmdb.open(str(path), map_size=4 * records.nbytes + (64 << 20)) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number, record in enumerate(records):
            transaction.put(number.to_bytes(4, "big"), record.tobytes(), append=True)


@contextmanager
def open_lmdb(path: Path) -> Any:
    import lmdb

    with lmdb.open(str(path), readonly=True, lock=False, readahead=False) as environment:

        def read(indices: NDArray[np.int64]) -> Records:
            with environment.begin(buffers=True) as transaction:
                values = [transaction.get(int(i).to_bytes(4, "big")) for i in indices]
                return np.stack([np.frombuffer(value, np.uint8) for value in values])

        yield read


def write_hdf5(path: Path, records: Records, rows_per_shard: int) -> None:
    import h5py

    chunks = (min(CHUNK_ROWS, len(records)), records.shape[1])
    with h5py.File(path, "w") as file:
        file.create_dataset("records", data=records, chunks=chunks, compression="gzip")


@contextmanager
def open_hdf5(path: Path) -> Any:
    import h5py

    with h5py.File(path, "r") as file:
        stored = file["records"]

        def read(indices: NDArray[np.int64]) -> Records:
            # h5py takes indices only in ascending order, each once.
            ascending, back = np.unique(indices, return_inverse=True)
            records: Records = stored[ascending][back]
            return records

        yield read


def write_pickles(path: Path, records: Records, rows_per_shard: int) -> None:
    for number, record in enumerate(records):
        if number % 1000 == 0:
            (path / str(number // 1000)).mkdir(parents=True)
        (path / str(number // 1000) / f"{number}.pkl").write_bytes(pickle.dumps(record))


@contextmanager
def open_pickles(path: Path) -> Any:
    folder = str(path)

    def read(indices: NDArray[np.int64]) -> Records:
        rows = []
        for index in indices:
            with open(f"{folder}/{index // 1000}/{index}.pkl", "rb") as file:
                rows.append(pickle.load(file))
        return np.stack(rows)

    yield read


def write_parquet(path: Path, records: Records, rows_per_shard: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    width = records.shape[1]
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(records), [None, pa.py_buffer(records)]
    )
    parquet.write_table(
        pa.table({"record": column}),
        path,
        row_group_size=rows_per_shard,
        compression="zstd",
        use_dictionary=False,
    )


@contextmanager
def open_parquet(path: Path) -> Any:
    import pyarrow.dataset

    stored = pyarrow.dataset.dataset(path)

    def read(indices: NDArray[np.int64]) -> Records:
        column = stored.take(indices)["record"].combine_chunks()
        width = column.type.byte_width
        whole = np.frombuffer(column.buffers()[1], np.uint8)
        return whole[column.offset * width :][: len(indices) * width].reshape(-1, width)

    yield read


def write_zarr(path: Path, records: Records, rows_per_shard: int) -> None:
    import zarr

    zarr.create_array(store=str(path), data=records)


@contextmanager
def open_zarr(path: Path) -> Any:
    import zarr

    stored = zarr.open_array(str(path), mode="r")

    def read(indices: NDArray[np.int64]) -> Records:
        records: Records = stored.oindex[indices]
        return records

    yield read


PEERS = {
    "lmdb": Peer(write=write_lmdb, open=open_lmdb, share=0.2, package="lmdb"),
    "hdf5": Peer(write=write_hdf5, open=open_hdf5, share=0.004, package="h5py"),
    "pickles": Peer(write=write_pickles, open=open_pickles, share=0.05),
    "parquet": Peer(write=write_parquet, open=open_parquet, share=0.004, package="pyarrow"),
    "zarr-default": Peer(write=write_zarr, open=open_zarr, share=0.004),
}
