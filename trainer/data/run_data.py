"""What a run is measured on, beside its training data: validation and test data, and the figures.

Validation data choose (the best epoch, a temperature); test data are measured once and choose
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from logitstore.errors import InputError
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.config.specs import split_share
from logitstore.trainer.data.bind import open_source, open_validation
from logitstore.trainer.data.order import Plan
from logitstore.trainer.data.requirements import refuse_other_labels
from logitstore.trainer.data.samples import (
    chosen_samples,
    hold_out,
    omitted_numbers,
    with_noise,
    without_classes,
)
from logitstore.trainer.data.source import Indices, Source
from logitstore.trainer.data.specialist import own_and_others


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Validation and test data, None where there are none; ``left`` are the samples to train on."""

    left: Indices
    val: Source | None
    test: Source | None

    def opened(self) -> list[Source]:
        """Those that there are."""
        return [source for source in (self.val, self.test) if source is not None]


def open_measured(config: TrainConfig, source: Source) -> Measured:
    """The data that a resolved run is measured on; its classes are numbered as the training data's.

    Raises what opening data raises, MismatchError for other classes, InputError for data without
    labels and a share that leaves nothing.
    """
    left, val = source.there(), None
    share = split_share(config.val)
    if share is not None:
        left, val = hold_out(source, share, config.limit_seed)
    elif config.val is not None:
        val = open_validation(config.val, source)
    test = None if config.test is None else open_validation(config.test, source, flag="--test")
    return Measured(left=left, val=val, test=test)


def shared_data(source: Source, measured: Measured) -> list[str]:
    """Notes on validation and test data that are no fresh data: the figures are too good."""
    own = source.dataset.samples().card()
    cards = {
        name: shown.dataset.samples().card()
        for name, shown in (("validation", measured.val), ("test", measured.test))
        if shown is not None
    }
    held_out = measured.val is not None and len(measured.left) < len(source.there())
    notes = [
        f"the {name} data, {card.name}, are the training data"
        for name, card in cards.items()
        if card == own and not (name == "validation" and held_out)
    ]
    if len(cards) == 2 and cards["test"] == cards["validation"] != own:
        notes.append(
            f"the test data, {cards['test'].name}, are the validation data: the best epoch and the "
            "temperature were chosen on them"
        )
    return notes


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
