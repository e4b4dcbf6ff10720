"""Recompute a sample of a snapshot's rows through its teacher and compare: ``verify --teacher``."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from logitstore.errors import InputError, MismatchError
from logitstore.format.encodings.table import encoding_of
from logitstore.format.grid import Span
from logitstore.precompute.building.batches import read_views
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.checkpoints import load_into, load_weights
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.forward import forward, pick_device
from logitstore.precompute.networks.teachers import find_teachers
from logitstore.precompute.views import views_of
from logitstore.precompute.views.canaries import check_canaries
from logitstore.precompute.views.items import joined
from logitstore.progress import Progress, Silent
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.reading.verify import Report
from logitstore.specs import file_sha256

_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Largest error by precision, relative to a row's range: other batches and CPUs sum differently."""

_BATCH = 64
"""Rows that are forwarded at a time."""


def verify_teacher(
    store: LogitStore,
    snapshot: Snapshot,
    report: Report,
    *,
    teacher: str,
    data: str,
    arch: str | None,
    sample: int = 256,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Add to ``report`` every row, of ``sample`` random ones, that the teacher does not reproduce.

    The teacher's file, the dataset and its views must be the ones that the snapshot names
    (MismatchError).  A row may differ by the encoding's bound and rounding of the forward pass.
    """
    progress = progress or Silent()
    card, view_card = snapshot.meta.teacher, snapshot.meta.view
    if card is None or view_card is None:
        raise InputError(
            f"snapshot {snapshot.name!r} was imported: there is no teacher to recompute"
        )
    if snapshot.meta.combined is not None:
        raise InputError(
            f"snapshot {snapshot.name!r} combines several networks: recompute the snapshots that "
            f"it was made from, the generalist's has root {snapshot.meta.combined.generalist}"
        )
    sources = find_teachers([teacher], archs=[arch] if arch else [])
    source = next((s for s in sources if file_sha256(s.path) == card.weights_sha256), sources[0])
    digest = file_sha256(source.path)
    if digest != card.weights_sha256:
        raise MismatchError(
            f"{source.path} has sha256 {digest}, snapshot {snapshot.name!r} was made by "
            f"{card.file} "
            f"with {card.weights_sha256}: give that checkpoint"
        )
    dataset = source.numbered(open_dataset(data))
    digest = dataset.samples().card().sha256
    if digest != store.meta.dataset.sha256:
        raise MismatchError(
            f"{data}: labels and keys have sha256 {digest}, the store's dataset "
            f"({store.meta.dataset.name}) has {store.meta.dataset.sha256}"
        )
    views = views_of(view_card)
    packages = snapshot.meta.packages
    for warning in check_canaries(view_card, dataset, views, packages=packages):
        progress.message(warning)
    if source.arch is None:
        raise InputError(f"{source.path}: say which network this is with --arch")
    with torch.random.fork_rng(devices=[]):
        model = build_model(source.arch, classes=snapshot.meta.classes, shape=card.input_shape)
    load_into(model, load_weights(source.path, card.weights_key)[0], str(source.path))
    place = pick_device(device)
    model.eval().requires_grad_(False).to(place)
    rng = np.random.default_rng(seed)
    rows = snapshot.meta.views * snapshot.meta.samples
    chosen = np.sort(rng.permutation(rows)[:sample])
    progress.start("recompute", len(chosen), "rows")
    for start in range(0, len(chosen), _BATCH):
        pairs = [divmod(int(row), snapshot.meta.samples) for row in chosen[start : start + _BATCH]]
        for view in sorted({view for view, _ in pairs}):
            indices = np.array([index for v, index in pairs if v == view])
            number = view_card.first_view + view
            singles = [Span(number, int(index), int(index) + 1) for index in indices]
            images = joined(read_views(dataset, views, singles, workers=0))
            live = forward(model, images.to(place), card.normalize, card.precision).numpy()
            report.breaches += _differences(snapshot, live, indices, view)
        report.rows_recomputed += len(pairs)
        progress.advance(len(pairs))


def _differences(
    snapshot: Snapshot, live: NDArray[np.float32], indices: NDArray[np.int64], view: int
) -> list[str]:
    """Return one line for each row whose stored logits are not those of the forward pass."""
    card = snapshot.meta.teacher
    assert card is not None
    stored = snapshot.logits(indices, view)
    spread = live.max(axis=1) - live.min(axis=1)
    allowed = snapshot.encoding.bound(live) + _TOLERANCE[card.precision] * (1 + spread)
    if snapshot.meta.transcoded is not None:
        before = snapshot.meta.transcoded.encoding
        allowed += encoding_of(before, snapshot.meta.classes).bound(live)
    distance = np.abs(stored - live).max(axis=1)
    return [
        f"{snapshot.name}: view {view}, sample {indices[row]}: stored logits are "
        f"{distance[row]:.3g} "
        f"away from the teacher's, at most {allowed[row]:.3g} is allowed"
        for row in np.flatnonzero(~(distance <= allowed))
    ]
