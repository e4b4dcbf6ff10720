"""What a build costs before it is made: bytes, seconds, and when it has paid for itself.

Arithmetic on a ``Trial``, some rows that were run once (``precompute.trial`` makes one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from logitstore.choice import candidates
from logitstore.console import percent, size, table
from logitstore.encodings import Encoding, Logits, spelled
from logitstore.footprint import Objects, footprint, planned, store_objects
from logitstore.schema import EncodingCard, SnapshotPlan, StoreMeta
from logitstore.shards import shard_rows
from logitstore.writer import Samples

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


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
    rows_done: int = 0,
) -> Estimate:
    """Scale a trial to all rows of the plans: one for each teacher, alike but for the teacher.

    ``rows_per_shard`` is what the user fixed; None takes each encoding's own.
    """
    plan, rows = plans[0], sum(plan.views * plan.samples for plan in plans)
    in_store = store_objects(meta, samples, plan)
    compared = candidates(plan.classes)
    if planned(plan) not in compared:
        compared.append(planned(plan))
    costs = [
        _encoding_cost([_encoded_as(p, entry, rows_per_shard) for p in plans], trial, in_store)
        for entry in compared
    ]
    chosen = next(cost for cost in costs if cost.name == spelled(planned(plan)))
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
        teachers=tuple(_teacher_cost(p.name, trial) for p in plans),
        encodings=tuple(costs),
        epochs=epochs,
        live_seconds=epochs * live,
        break_even_students=seconds / (epochs * live),
        break_even_epochs=seconds / live,
    )


def build_seconds(plan: SnapshotPlan, trial: Trial) -> float:
    """Seconds for all views and teachers: a shard is written while the next one is forwarded."""
    rows, shards = plan.views * plan.samples, plan.views * ceil(plan.samples / plan.rows_per_shard)
    forwarding = rows * max(trial.read, trial.together)
    writing = len(trial.logits) * (rows * trial.encode + shards * trial.put)
    return max(forwarding, writing) + min(forwarding, writing) / shards


def _encoded_as(plan: SnapshotPlan, entry: Encoding, rows_per_shard: int | None) -> SnapshotPlan:
    card = EncodingCard(name=entry.name, parameters=entry.parameters)
    rows = rows_per_shard or shard_rows(entry.widest)
    return plan.model_copy(update={"encoding": card, "rows_per_shard": rows})


def _encoding_cost(plans: Sequence[SnapshotPlan], trial: Trial, in_store: Objects) -> EncodingCost:
    found = [
        footprint(plan, trial.logits[plan.name], trial.labels, _top1(plan.name, trial), in_store)
        for plan in plans
    ]
    total = sum(entry.length for entry in in_store.values()) + sum(each.bytes for each in found)
    worst = np.max([[d.mean for d in each.fidelity.divergence] for each in found], axis=0)
    return EncodingCost(
        name=spelled(planned(plans[0])),
        bytes=total,
        bytes_per_row=total / sum(plan.views * plan.samples for plan in plans),
        kl=dict(zip(plans[0].temperatures, worst.tolist(), strict=True)),
    )


def _teacher_cost(name: str, trial: Trial) -> TeacherCost:
    return TeacherCost(
        name=name, forward_seconds_per_image=trial.forward[name], top1=_top1(name, trial)
    )


def _top1(name: str, trial: Trial) -> float | None:
    known = trial.labels >= 0
    right = trial.logits[name].argmax(axis=1) == trial.labels
    return float(right[known].mean()) if known.any() else None


def estimate_lines(found: Estimate) -> list[str]:
    """An estimate for a person."""
    count = len(found.teachers)
    done = f"; {found.rows_done:,} are done" if found.rows_done else ""
    left = f", {duration(found.seconds_left)} of it left" if found.rows_done else ""
    facts = {
        "dataset": f"{found.dataset}: {found.samples:,} samples, {found.classes} classes",
        "rows": f"{found.rows:,} ({found.views} x {found.samples:,} samples, {count} "
        f"teacher{'s' if count > 1 else ''}){done}",
        "bytes": f"{size(found.bytes)} as {found.encoding}: {found.bytes_per_row:.1f} bytes per "
        "row, metadata included",
        "time": f"{duration(found.seconds)}{left}; {found.rows_per_second:,.0f} rows/s "
        f"(reading alone {1 / found.read_seconds_per_image:,.0f} images/s)",
        "live": f"a student of {found.epochs} epochs with its teacher beside it waits "
        f"{duration(found.live_seconds)} for the teacher",
        "pays off": f"after {_short(found.break_even_students)} such students, or "
        f"{found.break_even_epochs:,.1f} student epochs",
        "measured": f"on {found.sample_rows:,} views",
    }
    teachers = [
        (each.name, f"{1 / each.forward_seconds_per_image:,.0f}", percent(each.top1))
        for each in found.teachers
    ]
    encodings = [
        (
            each.name,
            f"{each.bytes_per_row:.1f}",
            size(each.bytes),
            *(f"{kl:.1g}" for kl in each.kl.values()),
        )
        for each in found.encodings
    ]
    losses = [f"KL, nats, at T={temperature:g}" for temperature in found.encodings[0].kl]
    return [
        *(f"{key:9} {value}" for key, value in facts.items()),
        "",
        *table(("teacher", "forward, images/s", "top-1 of the sample"), teachers),
        "",
        *table(("encoding", "bytes per row", "in all", *losses), encodings),
    ]


def duration(seconds: float) -> str:
    """Seconds for a person, in at most two units.

    >>> duration(4325)
    '1 h 12 min'
    """
    for (unit, worth), (smaller, part) in pairwise(_UNITS):
        if seconds >= worth:
            large, small = divmod(round(seconds / part), worth // part)
            return f"{large} {unit}" + (f" {small} {smaller}" if small else "")
    return f"{seconds:.2g} s" if seconds >= 1 else "under 1 s"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
