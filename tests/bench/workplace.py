"""Where a run of benchmarks works: a folder, the sizes, and what several benchmarks share.

The logits are synthetic and like those of an ImageNet classifier: classes that are correlated (48
common directions), a bulk with a standard deviation of about 2, one high class, eight classes
that resemble it and lie between.
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
    """How much is done; ``make bench-quick`` does less of everything."""

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
    """``folder`` is empty at first and goes when the run ends; ``data`` holds real data, if any."""

    def __init__(self, folder: Path, sizes: Sizes, data: Path | None) -> None:
        self.folder, self.sizes, self.data = folder, sizes, data
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[Workplace], T]) -> T:
        """``make(self)``, made when the first benchmark asks for it."""
        if make not in self._made:
            self._made[make] = make(self)
        found: T = self._made[make]
        return found

    def new_folder(self, name: str) -> Path:
        """A folder that nobody had before."""
        number = sum(1 for _ in self.folder.glob(f"{name}-*"))
        path = self.folder / f"{name}-{number}"
        path.mkdir()
        return path


def synthetic(rows: int, classes: int = CLASSES, seed: int = 0) -> tuple[NDArray[np.float32], Any]:
    """Logits float32 (N, C) and labels int32 (N,)."""
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
    """A store ``name``.zarr with one snapshot ``teacher``, by way of ``logitstore import``."""
    folder = place.new_folder("import")
    np.save(folder / "logits.npy", logits)
    np.save(folder / "labels.npy", labels)
    out = folder / f"{name}.zarr"
    files = (str(folder / "logits.npy"), str(folder / "labels.npy"))
    import_logits(*files, str(out), "teacher", request=request)
    (folder / "logits.npy").unlink()
    return out


def make_store(place: Workplace) -> Path:
    """The synthetic store that reading and serving are measured on."""
    return import_store(
        place, "synthetic", *synthetic(place.sizes.rows), EncodingRequest(text=FORM)
    )


def open_synthetic(place: Workplace) -> Snapshot:
    """Its snapshot, read as the store lies there."""
    return open_store(place.once(make_store)).snapshots["teacher"]


def shuffled_batches(place: Workplace, count: int) -> NDArray[np.int64]:
    """Indices (count, BATCH) of samples, in random order."""
    rows = place.sizes.rows
    rng = np.random.default_rng(1)
    orders = [rng.permutation(rows) for _ in range(-(-count * BATCH // rows))]
    return np.concatenate(orders)[: count * BATCH].reshape(count, BATCH)


def disk_bytes(path: Path) -> int:
    """What a file or a folder takes on the disk, whole blocks."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)
