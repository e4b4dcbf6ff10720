"""What a run shows its student: samples and their order, what measures it, who teaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from logitstore.errors import InputError
from trainer.binding import open_source
from trainer.config import TrainConfig
from trainer.data import Indices, Plan, Source, chosen_samples
from trainer.experiments import with_noise
from trainer.measured import Measured, open_measured, shared_data
from trainer.omitted import omitted_numbers, without_classes
from trainer.specialists import own_and_others
from trainer.suited import refuse_other_labels


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Opened and checked against each other; ``notes`` say what is not as one might expect."""

    source: Source
    plan: Plan
    measured: Measured
    notes: tuple[str, ...]


def open_shown(config: TrainConfig, token: str | None) -> Shown:
    """Open a resolved run's data and store.

    Raises MismatchError, InputError, NotFound, Denied, Unreachable or Damaged before any work.
    """
    source, notes = open_source(config, token)
    measured = open_measured(config, source)
    notes += shared_data(source, measured)
    left, omitted = without_classes(source, measured.left, config.omit_classes)
    samples, others = chosen_samples(left, config.limit, config.limit_seed), None
    if config.specialist is not None:
        samples, others = own_and_others(source, samples)
    _refuse_unlabelled(config, source, samples)
    refuse_other_labels(config, source, samples)
    if config.label_noise:
        source = with_noise(
            source,
            samples if others is None else np.union1d(samples, others),
            config.label_noise,
            config.label_noise_seed,
            omitted_numbers(source, config.omit_classes),
        )
    plan = Plan(
        samples=samples,
        others=others,
        seed=config.seed,
        batch_size=config.batch_size,
        view_count=source.view_count,
        epochs=config.epochs,
    )
    notes += [*omitted, *config.make_method().remarks(config.epochs)]
    return Shown(source=source, plan=plan, measured=measured, notes=tuple(notes))


def _refuse_unlabelled(config: TrainConfig, source: Source, samples: Indices) -> None:
    if not config.make_method().needs_teacher and (source.dataset.labels[samples] < 0).all():
        raise InputError(
            f"{source.dataset.name}: no label is known, and method {config.method!r} learns from "
            "labels alone: use --method kd with a store"
        )
