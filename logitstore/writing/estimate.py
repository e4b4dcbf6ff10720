"""Estimate what a build will cost: bytes, seconds, and when it has paid for itself.

This is arithmetic on a ``Trial``, some rows that were run once; it runs nothing and reads no store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitstore.format.cards import Samples, SnapshotPlan, StoreMeta
from logitstore.format.choice import candidates
from logitstore.format.encodings.base import Logits
from logitstore.format.encodings.table import encoding_of, spelled
from logitstore.values import RowDigests
from logitstore.writing.footprint import footprint, shared_bytes
from logitstore.writing.plan import encoded_as


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Some rows of a build, run once: their labels int32 (n,), -1 where unknown, and logits (n, C).

    ``logits`` and ``forward`` have one entry for each snapshot, by name.  Seconds per image:
    ``read`` to load it, ``forward`` through one teacher, ``together`` for reading and all teachers
    as a build does it.  ``encode`` is seconds for one row of one teacher, ``put`` what a shard
    takes besides: to make files that last.
    """

    labels: NDArray[np.int32]
    logits: Mapping[str, Logits]
    read: float
    forward: Mapping[str, float]
    together: float
    encode: float
    put: float


@dataclass(frozen=True, kw_only=True)
class TeacherCost:
    """One teacher: its forward pass, and its top-1 on the trial's rows (None without labels)."""

    name: str
    forward_seconds_per_image: float
    top1: float | None


@dataclass(frozen=True, kw_only=True)
class EncodingCost:
    """The whole store in one encoding, ``name`` as ``--encoding`` takes it.

    ``kl`` is the trial's mean KL in nats, of the worst teacher, by temperature.
    """

    name: str
    bytes: int
    bytes_per_row: float
    kl: dict[float, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a build.

    ``rows`` counts views x samples x teachers; ``rows_done`` of them are finished already.
    ``bytes`` is the size of a store with these snapshots alone.  ``seconds`` is for all rows, after
    data and checkpoints are loaded; ``seconds_left`` for those that are not done.

    A student with its teacher beside it runs one forward per image and epoch: ``live_seconds`` is
    what ``epochs`` epochs of that take (the mean over the teachers), ``break_even_students`` and
    ``break_even_epochs`` after how many such students, or epochs, the whole build has cost less.
    """

    dataset: str
    samples: int
    views: int
    classes: int
    encoding: str
    rows: int
    rows_done: int
    sample_rows: int
    bytes: int
    bytes_per_row: float
    seconds: float
    seconds_left: float
    rows_per_second: float
    read_seconds_per_image: float
    teachers: tuple[TeacherCost, ...]
    encodings: tuple[EncodingCost, ...]
    epochs: int
    live_seconds: float
    break_even_students: float
    break_even_epochs: float


def predict(
    meta: StoreMeta,
    samples: Samples,
    plans: Sequence[SnapshotPlan],
    trial: Trial,
    *,
    epochs: int,
    rows_per_shard: int | None = None,
    row_digests: RowDigests = "auto",
    rows_done: int = 0,
) -> Estimate:
    """Scale a trial to all rows of the plans: one for each teacher, alike but for the teacher.

    ``rows_per_shard`` is what the user fixed; None takes each encoding's own.  ``row_digests`` says
    which encodings get them.
    """
    plan, rows = plans[0], sum(plan.views * plan.samples for plan in plans)
    shared = shared_bytes(meta, samples)
    encoding = encoding_of(plan.encoding, plan.classes)
    compared = candidates(plan.classes)
    if encoding not in compared:
        compared.append(encoding)
    costs = [
        _encoding_cost([p.model_copy(update=fields) for p in plans], trial, shared)
        for fields in (encoded_as(entry, rows_per_shard, row_digests) for entry in compared)
    ]
    chosen = costs[compared.index(encoding)]
    seconds = build_seconds(plan, trial)
    live = plan.samples * sum(trial.forward.values()) / len(trial.forward)
    return Estimate(
        dataset=samples.name,
        samples=plan.samples,
        views=plan.views,
        classes=plan.classes,
        encoding=chosen.name,
        rows=rows,
        rows_done=rows_done,
        sample_rows=len(trial.labels),
        bytes=chosen.bytes,
        bytes_per_row=chosen.bytes_per_row,
        seconds=seconds,
        seconds_left=seconds * (1 - rows_done / rows),
        rows_per_second=rows / seconds,
        read_seconds_per_image=trial.read,
        teachers=tuple(
            TeacherCost(
                name=p.name,
                forward_seconds_per_image=trial.forward[p.name],
                top1=_top1(p.name, trial),
            )
            for p in plans
        ),
        encodings=tuple(costs),
        epochs=epochs,
        live_seconds=epochs * live,
        break_even_students=seconds / (epochs * live),
        break_even_epochs=seconds / live,
    )


def build_seconds(plan: SnapshotPlan, trial: Trial) -> float:
    """Return the seconds for all rows: a shard is written while the next one is forwarded."""
    rows, shards = plan.views * plan.samples, len(plan.grid.shards())
    forwarding = rows * max(trial.read, trial.together)
    writing = len(trial.logits) * (rows * trial.encode + shards * trial.put)
    return max(forwarding, writing) + min(forwarding, writing) / shards


def _encoding_cost(plans: Sequence[SnapshotPlan], trial: Trial, shared: int) -> EncodingCost:
    footprints = [
        footprint(plan, trial.logits[plan.name], trial.labels, _top1(plan.name, trial))
        for plan in plans
    ]
    total = shared + sum(entry.bytes for entry in footprints)
    worst = np.max([[d.mean for d in entry.fidelity.divergence] for entry in footprints], axis=0)
    return EncodingCost(
        name=spelled(encoding_of(plans[0].encoding, plans[0].classes)),
        bytes=total,
        bytes_per_row=total / sum(plan.views * plan.samples for plan in plans),
        kl=dict(zip(plans[0].temperatures, worst.tolist(), strict=True)),
    )


def _top1(name: str, trial: Trial) -> float | None:
    known = trial.labels >= 0
    right = trial.logits[name].argmax(axis=1) == trial.labels
    return float(right[known].mean()) if known.any() else None
