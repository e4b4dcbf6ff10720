"""Refuse a run whose method cannot learn from its teachers' rows, its samples or their labels.

What a method needs is in ``methods``; why is in METHODS.md.  Each refusal names the ways out.
"""

from __future__ import annotations

import numpy as np

from logitstore.cache.prepare import refuse_unproven
from logitstore.errors import InputError
from logitstore.format.choice import MAX_KL
from logitstore.format.encodings.topk import TopK
from logitstore.precompute.processes.ranks import Ranks
from logitstore.reading.ensemble import leaves
from logitstore.reading.opening import expect_root
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.align import refuse_other_samples
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.samples import Choice, omitted_numbers
from logitstore.trainer.data.source import Indices, Source
from logitstore.trainer.data.teaching import TeachingSchedule, open_schedule
from logitstore.trainer.methods.base import Method
from logitstore.trainer.methods.table import METHODS


def open_suitable_teachers(
    store: LogitStore, config: TrainConfig, token: str | None
) -> TeachingSchedule:
    """Open a run's teachers; InputError if its method cannot learn from their rows.

    MismatchError if they belong to other samples than the store's, or lack the expected root.
    """
    method = config.method_object
    teaching = open_schedule(
        store,
        config.snapshot,
        temperature=method.ensemble_temperature,
        token=token,
        patience=config.patience,
    )
    refuse_other_samples(store, *teaching.teachers)
    if config.expect_root is not None:
        expect_root(teaching.name, teaching.root, config.expect_root)
        if config.read == "stream":
            refuse_unproven(*teaching.teachers)
    if method.needs_teacher:
        for leaf in leaves(*teaching.teachers):
            _refuse_missing_tail(leaf, config.method, method)
    return teaching


def _refuse_missing_tail(snapshot: Snapshot, name: str, method: Method) -> None:
    """Refuse ``topk`` rows to a method that needs more of the tail than its mass at T=1."""
    reason, temperature = method.needs_tail, method.teacher_temperature
    if reason is None and temperature is not None:
        refuse_lost_tail(snapshot, temperature)
    elif snapshot.meta.encoding.name == TopK.name:
        able = [other for other, kind in METHODS.items() if _can_do_without_tail(kind)]
        raise InputError(
            f"{_classes_of(snapshot)}, and method {name!r} {reason}: use a snapshot built "
            f"with --encoding uint8 or auto, or --method {' or '.join(able)} at temperature 1"
        )


def refuse_lost_tail(snapshot: Snapshot, temperature: float) -> None:
    """Refuse ``topk`` rows that are not known to be good at this temperature."""
    if snapshot.meta.encoding.name != TopK.name or temperature == 1:
        return
    measured = {d.temperature: d.mean for d in snapshot.meta.fidelity.divergence}
    lost = measured.get(temperature)
    if lost is None or lost > MAX_KL:
        loss = "was not measured" if lost is None else f"is {lost:.2g} nats"
        raise InputError(
            f"{_classes_of(snapshot)}: its loss at temperature {temperature:g} {loss}, at "
            f"most {MAX_KL:g} is usable; use --temperature 1, or a snapshot built with "
            f"--encoding auto --at-temperature {temperature:g}"
        )


def _classes_of(snapshot: Snapshot) -> str:
    return (
        f"snapshot {snapshot.name!r} keeps {snapshot.meta.encoding.parameters['k']} of "
        f"{snapshot.meta.classes} classes"
    )


def _can_do_without_tail(kind: type[Method]) -> bool:
    return kind.needs_teacher and kind().needs_tail is None


def refuse_samples(config: TrainConfig, source: Source, choice: Choice) -> None:
    """Refuse the first thing about a run's samples and labels that its settings cannot have."""
    _refuse_held_out(config, source, choice)
    _refuse_omission(config, source, choice)
    if config.limit is not None and config.limit > len(choice.eligible):
        raise InputError(
            f"--limit {config.limit} is more than the {len(choice.eligible)} samples there are"
        )
    _refuse_missing_classes(source, choice)
    refuse_mixed_views(config, source)
    _refuse_unlabelled(config, source, choice.samples)
    classes = np.setdiff1d(np.arange(source.classes), omitted_numbers(source, config.omit_classes))
    if config.label_noise and len(classes) < 2:
        raise InputError("--label-noise needs two classes or more: drop it")


def _refuse_held_out(config: TrainConfig, source: Source, choice: Choice) -> None:
    held, name = choice.held_out, source.dataset.name
    if held is None:
        return
    if source.views.mix is not None:
        raise InputError(
            f"--val {config.val}: the store's views blend each sample of {name} with another, so "
            "that held-out ones would be trained on: give --val DATA"
        )
    refuse_share(str(config.val), choice.training, held)
    if (source.dataset.labels[held] < 0).all():
        raise InputError(
            f"--val {config.val}: none of the {len(held)} held-out samples of {name} has a label: "
            "give --val DATA with labels"
        )


def refuse_share(val: str, training: Indices, held_out: Indices) -> None:
    """Refuse a share that leaves no sample to train on, or none to measure on."""
    if len(held_out) == 0 or len(training) == 0:
        raise InputError(
            f"--val {val} of {len(held_out) + len(training)} samples holds out {len(held_out)} and "
            f"leaves {len(training)} to train on: choose another share, or give --val DATA"
        )


def _refuse_omission(config: TrainConfig, source: Source, choice: Choice) -> None:
    if not config.omit_classes:
        return
    listed, name = ",".join(map(str, config.omit_classes)), source.dataset.name
    if len(omitted_numbers(source, config.omit_classes)) == source.classes:
        raise InputError(f"--omit-class {listed}: these are all classes of {name}")
    if source.views.mix is not None:
        raise InputError(
            f"--omit-class {listed}: the store's views blend each image with one of any class: use "
            "a snapshot built without --mix"
        )
    if len(choice.eligible) == 0:
        raise InputError(f"--omit-class {listed}: no sample of {name} is left")


def _refuse_missing_classes(source: Source, choice: Choice) -> None:
    """Refuse a specialist's class without any sample: nothing could be told apart from it."""
    if choice.others is None:
        return
    labels = source.dataset.labels[np.concatenate([choice.samples, choice.others])]
    counts = np.bincount(labels, minlength=source.classes)
    names = source.dataset.class_names or ()
    empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if empty:
        raise InputError(
            f"{source.dataset.name}: no sample of class {', '.join(map(repr, empty))} is left for "
            "this specialist: train on more data (a higher --limit), or take the class out of the "
            "plan"
        )


def refuse_mixed_views(config: TrainConfig, source: Source) -> None:
    """Refuse mixed images, which have two labels, to a method that needs one for each image."""
    if config.method_object.one_label and source.views.mix is not None:
        raise InputError(
            f"method {config.method!r} takes each image's one label apart from the other classes, "
            "and the store's mixed views (mixup, cutmix) have two labels: "
            f"{_other_methods(config.method)}, or a snapshot built without --mix"
        )


def _refuse_unlabelled(config: TrainConfig, source: Source, samples: Indices) -> None:
    """Refuse samples without a label where the method, or --teach, needs it."""
    method, name = config.method_object, source.dataset.name
    unknown = int((source.dataset.labels[samples] < 0).sum())
    if unknown == len(samples) and not method.needs_teacher:
        raise InputError(
            f"{name}: no label is known, and method {config.method!r} learns from labels alone: "
            "use --method kd with a store"
        )
    if config.teach != "all" and unknown:
        raise InputError(
            f"--teach {config.teach} ranks samples by the teacher's probability of their label, "
            f"and {unknown:,} labels of {name} are unknown: label them, or drop --teach"
        )
    if method.one_label and unknown:
        raise InputError(
            f"method {config.method!r} takes each image's one label apart from the other classes, "
            f"and {unknown:,} of {len(samples):,} labels of {name} are unknown: "
            f"{_other_methods(config.method)}, or leave those samples out of the dataset"
        )


def refuse_ranks(config: TrainConfig, order: BatchOrder, ranks: Ranks) -> None:
    """Refuse ranks that a batch cannot be shared by."""
    if ranks.count == 1:
        return
    if config.method_object.per_batch:
        raise InputError(
            f"method {config.method!r} couples the samples of a batch in its loss, so that the "
            f"parts of {ranks.count} ranks would teach something else: use one process, or another "
            "method"
        )
    fewest = order.batch_samples(order.steps - 1)
    if fewest < ranks.count:
        raise InputError(
            f"the last batch of an epoch has {fewest} of {order.epoch_samples} images, too few for "
            f"{ranks.count} ranks: use another --batch-size, or fewer ranks (torchrun "
            f"--nproc-per-node {fewest})"
        )


def _other_methods(name: str) -> str:
    """Return the way out to the methods that learn from the same sources and need no label."""
    needs = METHODS[name].needs_teacher
    others = [
        other
        for other, kind in METHODS.items()
        if kind.needs_teacher == needs and not kind.one_label
    ]
    return f"use --method {' or '.join(others)}"
