"""Move logits between plain files and stores: ``logitstore import`` and ``export``.

No teacher is run, and nothing binds what is imported to images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from logitstore.errors import InputError, MismatchError, NotFound
from logitstore.format.cards import ImportCard, Samples, SnapshotPlan, StoreMeta
from logitstore.format.choice import SAMPLE_ROWS, EncodingRequest, choose_encoding, sample_pairs
from logitstore.format.documents import check_name
from logitstore.format.encodings.base import LIMITS, Logits, unusable
from logitstore.progress import Progress, Silent
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore, open_stored
from logitstore.specs import Spec, file_sha256
from logitstore.storage import Storage, open_storage
from logitstore.storage.archives import npz_header, npz_names
from logitstore.storage.durable import new_file, os_errors_as_ours, refuse_place
from logitstore.writing.opening import write_snapshot
from logitstore.writing.plan import encoded_as, package_versions
from logitstore.writing.target import Target

FORMATS = (".npy", ".npz", ".safetensors")
"""Endings of the files that are read and written."""


def import_logits(
    file: str,
    labels: str,
    out: str,
    snapshot: str,
    *,
    request: EncodingRequest | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write logits computed elsewhere as a snapshot and return its root.

    ``file`` holds (N, C) or (V, N, C) numbers, ``labels`` N integers (-1 where unknown); both are
    .npy, .npz or .safetensors, with ``?key=NAME`` to choose an array.  Nothing binds such a
    snapshot to images, so training on it needs ``--allow-unbound``.  ``request`` None is the
    default encoding.  Raises InputError, NotFound, NonFinite.
    """
    check_name("snapshot", snapshot)
    values, known, path = _read_inputs(file, labels)
    views, count, classes = values.shape
    request = request or EncodingRequest()
    if request.bound is None:
        entry = request.unmeasured(classes)
    else:
        _check_finite(values, path)
        view, chosen = np.array(sample_pairs(count, views, SAMPLE_ROWS)).T
        sample = np.asarray(values[view, chosen], np.float32)
        entry = choose_encoding(request, [sample], known[chosen], path.name)
    storage = open_storage(out)
    samples, meta = _described(storage, known, classes)
    plan = SnapshotPlan(
        name=snapshot,
        views=views,
        samples=count,
        classes=classes,
        imported=ImportCard(file=path.name, sha256=file_sha256(path)),
        temperatures=request.temperatures,
        packages=package_versions(),
        **encoded_as(entry, row_digests=request.row_digests),
    )
    target = Target.read(storage, meta, samples)
    target.refuse(plan, fresh=fresh)
    _check_finite(values, path)
    return write_snapshot(
        target,
        plan,
        lambda shard: np.asarray(values[shard.view, shard.samples], np.float32),
        "import",
        fresh=fresh,
        progress=progress,
    )


def _read_inputs(file: str, labels: str) -> tuple[NDArray[Any], NDArray[np.int32], Path]:
    """Return logits (V, N, C), labels int32 (N,) and the logits' path; refuse what is neither."""
    values, path = _read_array(file)
    known, labels_path = _read_array(labels)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise InputError(
            f"{path}: {values.dtype} {values.shape}, expected numbers (N, C) or (V, N, C)"
        )
    if known.ndim != 1 or known.dtype.kind not in "iu":
        raise InputError(f"{labels_path}: {known.dtype} {known.shape}, expected integers (N,)")
    count, classes = values.shape[1:]
    if len(known) != count:
        raise InputError(f"{labels_path}: {len(known)} labels for the {count} samples of {path}")
    outside = np.flatnonzero((known < -1) | (known >= classes))
    if len(outside):
        raise InputError(
            f"{labels_path}: sample {outside[0]} has label {known[outside[0]]}, expected -1 or "
            f"0..{classes - 1}"
        )
    if classes > 1 and _looks_like_probabilities(values):
        raise InputError(
            f"{path}: these rows are probabilities (not negative, each sums to 1); give the "
            "logits, or their logarithm: log-probabilities are logits"
        )
    return values, known.astype(np.int32), path


def _described(
    storage: Storage, labels: NDArray[np.int32], classes: int
) -> tuple[Samples, StoreMeta]:
    """Return samples and metadata: those of the store that is there, if it has the same labels."""
    if storage.size("zarr.json") is not None:
        store = open_stored(storage)
        if list(store.snapshots) and np.array_equal(store.labels, labels):
            return store.samples(), store.meta.model_copy(update={"classes": classes})
    samples = Samples("imported", labels)
    return samples, StoreMeta(classes=classes, dataset=samples.card())


def export_logits(
    store: LogitStore, snapshot: Snapshot, out: str, progress: Progress | None = None
) -> tuple[int, ...]:
    """Write decoded logits, float32 (N, C) or (V, N, C) if V > 1; return that shape.

    ``.npz`` and ``.safetensors`` also hold the labels.  The file is complete or absent.
    """
    progress = progress or Silent()
    path = Path(out)
    if path.suffix not in FORMATS:
        raise InputError(f"{out}: expected a name that ends in {', '.join(FORMATS)}")
    refuse_place(path)
    meta = snapshot.meta
    rows = (meta.samples, meta.classes)
    shape = rows if meta.views == 1 else (meta.views, *rows)
    progress.start("export", meta.views * meta.samples, "rows")
    with os_errors_as_ours(str(path.parent), path.name), new_file(path) as file:
        if path.suffix == ".npy":
            _write_npy(file, snapshot, shape, progress)
        else:
            logits = np.concatenate(list(_decoded(snapshot, progress))).reshape(shape)
            if path.suffix == ".npz":
                np.savez(file, logits=logits, labels=store.labels)
            else:
                file.write(save({"logits": logits, "labels": store.labels}))
    return shape


def _write_npy(
    file: BinaryIO, snapshot: Snapshot, shape: tuple[int, ...], progress: Progress
) -> None:
    """Write shard by shard: a memory map on a full disk would kill the process."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for rows in _decoded(snapshot, progress):
        file.write(rows.astype("<f4").tobytes())


def _decoded(snapshot: Snapshot, progress: Progress) -> Iterator[Logits]:
    """Yield all rows, view by view, float32 (rows, C) at a time."""
    for shard in snapshot.grid.shards():
        yield snapshot.logits(np.arange(shard.start, shard.stop), shard.view)
        progress.advance(shard.rows)


def _read_array(text: str) -> tuple[NDArray[Any], Path]:
    """Read the array that ``FILE[?key=NAME]`` names."""
    spec = Spec.parse(text)
    spec.only("key")
    path, key = Path(spec.head), spec.options.get("key")
    if not path.is_file():
        raise NotFound(f"{path}: there is no such file")
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), path
        if path.suffix == ".npz":
            name = _chosen(path, key, npz_names(path))
            dtype = npz_header(path, name).dtype
            if dtype.kind not in "fiu":
                raise InputError(f"{path}: {name} is {dtype}, expected numbers")
            with np.load(path, allow_pickle=False) as archive:
                return archive[name], path
        with safe_open(path, framework="numpy") as archive:
            return archive.get_tensor(_chosen(path, key, list(archive.keys()))), path
    except InputError:
        raise
    except Exception as error:  # a damaged file makes the parsers raise anything
        raise InputError(f"{path}: not readable as plain numbers ({error})") from None


def _chosen(path: Path, key: str | None, names: list[str]) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        problem = f"no array {key!r}" if key else f"{len(names)} arrays"
        raise InputError(
            f"{path}: {problem}; choose one with ?key=NAME: {', '.join(sorted(names)[:15])}"
        )
    return key


def _looks_like_probabilities(values: NDArray[Any]) -> bool:
    head = np.asarray(values[0, :1000], np.float64)
    return bool((head >= 0).all() and np.allclose(head.sum(axis=1), 1, atol=1e-3))


def _check_finite(values: NDArray[Any], path: Path) -> None:
    for view in range(len(values)):
        for start in range(0, values.shape[1], 16_384):
            with np.errstate(over="ignore"):  # of float64; it is infinite then
                block = np.asarray(values[view, start : start + 16_384], np.float32)
            broken = unusable(block)
            if len(broken):
                raise MismatchError(
                    f"{path}: view {view}, sample {start + broken[0]} is NaN or infinite (as "
                    f"float32), or too large: {LIMITS}"
                )
