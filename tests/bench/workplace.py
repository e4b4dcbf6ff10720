"""The folder, the sizes and the inputs that several benchmarks share.

The logits are synthetic and resemble those of an ImageNet classifier: the classes are correlated
(48 common directions), the bulk has a standard deviation of about 2, one class is high, and eight
similar classes lie between it and the bulk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitstore.derive.files import import_logits
from logitstore.format.choice import EncodingRequest
from logitstore.reading.opening import open_store
from logitstore.reading.snapshot import Snapshot

T = TypeVar("T")

CLASSES = 1000
BATCH = 256
FORM = "uint8"
_BLOCK = 16_384


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Amounts of work; ``make bench-quick`` has smaller ones."""

    rows: int  # of the synthetic logits
    curve_rows: int  # encoded in every encoding
    repeats: int
    few_repeats: int  # of what takes long or hardly varies
    step_repeats: int
    batches: int  # gathered per turn
    load_seconds: float  # each turn of the load on a server
    images: int  # forwarded by a build
    growth: tuple[int, int]  # rows of the smaller of two runs, and of a shard


FULL = Sizes(
    rows=200_000,
    curve_rows=16_384,
    repeats=7,
    few_repeats=5,
    step_repeats=75,
    batches=300,
    load_seconds=3.0,
    images=4096,
    growth=(20_480, 2048),
)
QUICK = Sizes(
    rows=50_000,
    curve_rows=4096,
    repeats=5,
    few_repeats=1,
    step_repeats=5,
    batches=100,
    load_seconds=0.7,
    images=1024,
    growth=(8192, 1024),
)


class Workplace:
    """A run's working ``folder``, which is removed at its end; ``data`` is real data or None."""

    def __init__(self, folder: Path, sizes: Sizes, data: Path | None) -> None:
        self.folder, self.sizes, self.data = folder, sizes, data
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[Workplace], T]) -> T:
        """Return ``make(self)``, which is called once, when a benchmark first needs it."""
        if make not in self._made:
            self._made[make] = make(self)
        result: T = self._made[make]
        return result

    def new_folder(self, name: str) -> Path:
        """Make a new folder."""
        number = sum(1 for _ in self.folder.glob(f"{name}-*"))
        path = self.folder / f"{name}-{number}"
        path.mkdir()
        return path


def synthetic(rows: int, classes: int = CLASSES, seed: int = 0) -> tuple[NDArray[np.float32], Any]:
    """Draw logits float32 (N, C) and labels int32 (N,)."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((48, classes), np.float32) / np.float32(48**0.5)
    offsets = 0.4 * rng.standard_normal(classes, np.float32)
    alike = np.argsort(-(directions.T @ directions), axis=1)[:, 1:9]
    labels = rng.integers(0, classes, rows, dtype=np.int32)
    logits = np.empty((rows, classes), np.float32)
    for start in range(0, rows, _BLOCK):
        block, chosen = logits[start : start + _BLOCK], labels[start : start + _BLOCK]
        rng.standard_normal(dtype=np.float32, out=block)
        block *= 1.1
        block += 1.6 * (rng.standard_normal((len(block), 48), np.float32) @ directions) + offsets
        row = np.arange(len(block))
        block[row, chosen] += np.maximum(rng.normal(11, 3.5, len(block)), 3)
        for place in range(alike.shape[1]):
            raised = np.maximum(rng.normal(5.5 - 0.5 * place, 2.2, len(block)), 0)
            block[row, alike[chosen, place]] += raised
    return logits, labels


def import_store(
    place: Workplace, name: str, logits: Any, labels: Any, request: EncodingRequest
) -> Path:
    """Write a store ``name``.zarr with one snapshot ``teacher``, as ``logitstore import`` does."""
    folder = place.new_folder("import")
    np.save(folder / "logits.npy", logits)
    np.save(folder / "labels.npy", labels)
    out = folder / f"{name}.zarr"
    files = (str(folder / "logits.npy"), str(folder / "labels.npy"))
    import_logits(*files, str(out), "teacher", request=request)
    (folder / "logits.npy").unlink()
    return out


def make_store(place: Workplace) -> Path:
    """Write the synthetic store on which reading and serving are measured."""
    return import_store(
        place, "synthetic", *synthetic(place.sizes.rows), EncodingRequest(text=FORM)
    )


def open_synthetic(place: Workplace) -> Snapshot:
    """Open the snapshot of the synthetic store, without a decoded copy."""
    return open_store(place.once(make_store)).snapshots["teacher"]


def shuffled_batches(place: Workplace, count: int) -> NDArray[np.int64]:
    """Return indices (count, BATCH) of samples, in random order."""
    rows = place.sizes.rows
    rng = np.random.default_rng(1)
    orders = [rng.permutation(rows) for _ in range(-(-count * BATCH // rows))]
    return np.concatenate(orders)[: count * BATCH].reshape(count, BATCH)


def disk_bytes(path: Path) -> int:
    """Return the bytes of the disk blocks that a file or a folder takes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)
