"""Write small committed stores whose logits are known, with the library's own writer."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from logitstore.format.cards import EncodingCard, ImportCard, Samples, SnapshotPlan, StoreMeta
from logitstore.format.encodings.table import parse_encoding
from logitstore.format.grid import shard_rows
from logitstore.storage import open_storage
from logitstore.writing.opening import open_writer
from logitstore.writing.target import Target


def logits_of(seed: int, samples: int, classes: int, views: int = 1) -> NDArray[np.float32]:
    """The logits that ``tiny_store`` writes: float32 (V, N, C), normal times 3."""
    drawn = np.random.default_rng(seed).standard_normal((views, samples, classes)) * 3
    return drawn.astype(np.float32)


def tree(root: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, hidden ones too, by its path in it."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="session")
def tiny_store() -> Callable[..., Path]:
    """``tiny_store(path, snapshots=("teacher",), samples=100, classes=10, views=1, …) -> path``.

    Builds a real, committed store with the library's own writer.  Snapshot i holds the logits
    ``logits_of(seed + i, samples, classes, views)``; labels are sample % classes.  Shards hold
    ``rows_per_shard`` rows (32 unless told), so that even a tiny store has several.  Calling it
    again with another snapshot name and the same path lets the store grow.
    """

    def build(
        path: Path,
        snapshots: tuple[str, ...] = ("teacher",),
        *,
        samples: int = 100,
        classes: int = 10,
        views: int = 1,
        seed: int = 0,
        form: str = "float16",
        rows_per_shard: int | None = 32,
        keys: bool = False,
        row_digests: bool = False,
    ) -> Path:
        labels = np.arange(samples, dtype=np.int32) % classes
        named = [f"img/{i:05d}.png" for i in range(samples)] if keys else None
        described = Samples(name="tiny", labels=labels, keys=named)
        meta = StoreMeta(classes=classes, class_names=None, dataset=described.card())
        kind = parse_encoding(form, classes)
        rows = rows_per_shard or shard_rows(kind.widest)
        for number, name in enumerate(snapshots):
            plan = SnapshotPlan(
                name=name,
                views=views,
                samples=samples,
                classes=classes,
                rows_per_shard=rows,
                imported=ImportCard(file="tiny.npy", sha256="0" * 64),
                encoding=EncodingCard.of(kind),
                row_digests=row_digests,
                packages={},
            )
            logits = logits_of(seed + number, samples, classes, views)
            _write(path, meta, described, plan, logits)
        return path

    return build


@pytest.fixture(scope="session")
def bound_store() -> Callable[..., Path]:
    """``bound_store(path, data, logits, name="teacher", view_spec="eval") -> path``: a bound store.

    ``data`` is a dataset spec, ``logits`` float32 (V, N, C), kept exactly.  Unlike ``tiny_store``
    it records the views' fingerprints, so that students may learn from it.  Needs torch.
    """
    from logitstore.precompute.data.sources import open_dataset
    from logitstore.precompute.views import parse_views
    from logitstore.precompute.views.canaries import make_view_card

    def build(
        path: Path,
        data: str,
        logits: NDArray[np.float32],
        name: str = "teacher",
        view_spec: str = "eval",
    ) -> Path:
        dataset = open_dataset(data)
        views, samples, classes = logits.shape
        plan = SnapshotPlan(
            name=name,
            views=views,
            samples=samples,
            classes=classes,
            rows_per_shard=256,
            imported=ImportCard(file="logits.npy", sha256="0" * 64),
            view=make_view_card(dataset, parse_views(view_spec, None), views),
            encoding=EncodingCard(name="float32"),
            packages={},
        )
        meta = StoreMeta(
            classes=classes, class_names=dataset.class_names, dataset=dataset.samples().card()
        )
        _write(path, meta, dataset.samples(), plan, logits)
        return path

    return build


def _write(
    path: Path, meta: StoreMeta, samples: Samples, plan: SnapshotPlan, logits: NDArray[np.float32]
) -> None:
    writer = open_writer(Target.read(open_storage(path), meta, samples), plan)
    for shard in writer.missing():
        part = slice(shard.start, shard.stop)
        writer.write(shard, logits[shard.view, part], samples.labels[part])
    writer.commit()
