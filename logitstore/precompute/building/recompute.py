"""Recompute a sample of a snapshot's rows through its teacher and compare: ``verify --teacher``."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import TeacherCard, ViewCard
from logitstore.format.encodings.table import encoding_of
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.checkpoints import load_weights
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.forward import forward, pick_device
from logitstore.precompute.networks.state_dicts import load_into
from logitstore.precompute.networks.teachers import TeacherSource, find_teachers
from logitstore.precompute.views import views_of
from logitstore.precompute.views.canaries import check_canaries
from logitstore.precompute.views.items import ViewItems, stacked
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
    trust_run: bool = False,
    progress: Progress | None = None,
) -> None:
    """Add to ``report`` every row, of ``sample`` random ones, that the teacher does not reproduce.

    The teacher's file, the dataset and its views must be the ones that the snapshot names
    (MismatchError).  A row may differ by the encoding's bound and rounding of the forward pass.
    """
    progress = progress or Silent()
    card, view_card = _recomputable(snapshot)
    source = _source_of(snapshot.name, card, teacher, arch, trust_run)
    dataset = source.numbered(open_dataset(data))
    digest = dataset.samples().card().sha256
    if digest != store.meta.dataset.sha256:
        raise MismatchError(
            f"{data}: labels and keys have sha256 {digest}, the store's dataset "
            f"({store.meta.dataset.name}) has {store.meta.dataset.sha256}"
        )
    views, meta = views_of(view_card), snapshot.meta
    for warning in check_canaries(view_card, dataset, views, packages=meta.packages):
        progress.message(warning)
    with torch.random.fork_rng(devices=[]):
        model = build_model(source.architecture(), classes=meta.classes, shape=card.input_shape)
    weights = load_weights(source.path, card.weights_key)
    load_into(model, weights.state, str(source.path), weights.key)
    place = pick_device(device)
    model.eval().requires_grad_(False).to(place)
    items = ViewItems(dataset, views)
    rows = np.random.default_rng(seed).permutation(meta.views * meta.samples)[:sample]
    progress.start("recompute", len(rows), "rows")
    for view in range(meta.views):
        of_view = np.sort(rows[rows // meta.samples == view] % meta.samples)
        for start in range(0, len(of_view), _BATCH):
            indices = of_view[start : start + _BATCH]
            number = view_card.first_view + view
            images = stacked(items.show(number, index) for index in indices.tolist()).to(place)
            live = forward(model, images, card.normalize, card.precision).numpy()
            report.breaches += _differences(snapshot, live, indices, view)
            report.rows_recomputed += len(indices)
            progress.advance(len(indices))


def _recomputable(snapshot: Snapshot) -> tuple[TeacherCard, ViewCard]:
    """Return the cards of teacher and views; InputError if no single teacher made the rows."""
    meta = snapshot.meta
    if meta.teacher is None or meta.view is None:
        raise InputError(
            f"snapshot {snapshot.name!r} was imported: there is no teacher to recompute"
        )
    if meta.combined is not None:
        raise InputError(
            f"snapshot {snapshot.name!r} combines several networks: recompute the snapshots that "
            f"it was made from, the generalist's has root {meta.combined.generalist}"
        )
    return meta.teacher, meta.view


def _source_of(
    name: str, card: TeacherCard, teacher: str, arch: str | None, trust_run: bool
) -> TeacherSource:
    """Return the checkpoint at ``teacher`` that a snapshot names; MismatchError if none is it."""
    sources = find_teachers([teacher], archs=[arch] if arch else [], trust_run=trust_run)
    digests = [file_sha256(source.path) for source in sources]
    if card.weights_sha256 not in digests:
        raise MismatchError(
            f"{sources[0].path} has sha256 {digests[0]}, snapshot {name!r} was made by "
            f"{card.file} with {card.weights_sha256}: give that checkpoint"
        )
    return sources[digests.index(card.weights_sha256)]


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
        f"{distance[row]:.3g} away from the teacher's, at most {allowed[row]:.3g} is allowed"
        for row in np.flatnonzero(~(distance <= allowed))
    ]
