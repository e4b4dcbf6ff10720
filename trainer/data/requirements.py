"""Can this method learn from these teachers' rows and these labels?  Else refuse, with ways out.

What a method needs is in ``method``; why is in METHODS.md.
"""

from __future__ import annotations

from logitstore.errors import InputError
from logitstore.format.choice import MAX_KL
from logitstore.format.encodings.topk import TopK
from logitstore.reading.ensemble import leaves
from logitstore.reading.opening import expect_root
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.source import Indices, Source
from logitstore.trainer.data.teaching import TeachingSchedule, open_schedule
from logitstore.trainer.methods.base import Method
from logitstore.trainer.methods.table import METHODS


def open_suitable_teachers(
    store: LogitStore, config: TrainConfig, token: str | None
) -> TeachingSchedule:
    """Who teaches in this run, opened; InputError if the method cannot learn from their rows."""
    method = config.method_object
    teaching = open_schedule(
        store,
        config.snapshot,
        temperature=method.ensemble_temperature,
        token=token,
        patience=config.patience,
    )
    if config.expect_root is not None:
        expect_root(teaching.name, teaching.root, config.expect_root)
    if method.needs_teacher:
        for leaf in leaves(*teaching.teachers):
            _refuse_missing_tail(leaf, config.method, method)
    return teaching


def _refuse_missing_tail(snapshot: Snapshot, name: str, method: Method) -> None:
    """A topk row knows its tail's mass at T=1 only; at T=4 the tail may be most of the mass."""
    reason, temperature = method.needs_tail, method.teacher_temperature
    if reason is None and temperature is not None:
        refuse_lost_tail(snapshot, temperature)
    elif snapshot.meta.encoding.name == TopK.name:
        able = [other for other, kind in METHODS.items() if _can_do_without_tail(kind)]
        raise InputError(
            f"{_kept(snapshot)}, and method {name!r} {reason}: use a snapshot built "
            f"with --encoding uint8 or auto, or --method {' or '.join(able)} at temperature 1"
        )


def refuse_lost_tail(snapshot: Snapshot, temperature: float) -> None:
    """InputError if ``topk`` rows are not known to be good at this temperature."""
    if snapshot.meta.encoding.name != TopK.name or temperature == 1:
        return
    measured = {d.temperature: d.mean for d in snapshot.meta.fidelity.divergence}
    lost = measured.get(temperature)
    if lost is None or lost > MAX_KL:
        said = "was not measured" if lost is None else f"is {lost:.2g} nats"
        raise InputError(
            f"{_kept(snapshot)}: its loss at temperature {temperature:g} {said}, at "
            f"most {MAX_KL:g} is usable; use --temperature 1, or a snapshot built with "
            f"--encoding auto --at-temperature {temperature:g}"
        )


def _kept(snapshot: Snapshot) -> str:
    return (
        f"snapshot {snapshot.name!r} keeps {snapshot.meta.encoding.parameters['k']} of "
        f"{snapshot.meta.classes} classes"
    )


def _can_do_without_tail(kind: type[Method]) -> bool:
    return kind.needs_teacher and kind().needs_tail is None


def refuse_mixed_views(config: TrainConfig, source: Source) -> None:
    """InputError if the method needs one label for each image, and mixed images have two."""
    if config.method_object.one_label and source.views.mix is not None:
        raise InputError(
            f"method {config.method!r} takes each image's one label apart from the other classes, "
            "and the store's mixed views (mixup, cutmix) have two labels: "
            f"{_other_methods(config.method)}, or a snapshot built without --mix"
        )


def refuse_other_labels(config: TrainConfig, source: Source, samples: Indices) -> None:
    """InputError if the method, or --teach, needs a label that these samples do not have."""
    refuse_mixed_views(config, source)
    unknown = int((source.dataset.labels[samples] < 0).sum())
    if config.teach != "all" and unknown:
        raise InputError(
            f"--teach {config.teach} ranks samples by the teacher's probability of their label, "
            f"and {unknown:,} labels of {source.dataset.name} are unknown: label them, or drop "
            "--teach"
        )
    if config.method_object.one_label and unknown:
        raise InputError(
            f"method {config.method!r} takes each image's one label apart from the other classes, "
            f"and {unknown:,} of {len(samples):,} labels of {source.dataset.name} are unknown: "
            f"{_other_methods(config.method)}, or leave those samples out of the dataset"
        )


def _other_methods(name: str) -> str:
    """The way out to the methods that learn from the same sources and need no label."""
    needs = METHODS[name].needs_teacher
    others = [
        other
        for other, kind in METHODS.items()
        if kind.needs_teacher == needs and not kind.one_label
    ]
    return f"use --method {' or '.join(others)}"
