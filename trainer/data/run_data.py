"""Open all data of a run: the training data with their teacher, validation and test data.

Validation data choose the best epoch and a temperature; test data are measured once and choose
nothing.  Nothing here trains or measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from logitstore.errors import InputError
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.config.specs import split_share
from logitstore.trainer.data.bind import open_source, open_validation
from logitstore.trainer.data.order import BatchOrder
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
class EvalData:
    """What a run is measured on (None: nothing); ``training`` are the samples to train on."""

    training: Indices
    val: Source | None
    test: Source | None

    def sources(self) -> list[Source]:
        """Return the data that the run has."""
        return [source for source in (self.val, self.test) if source is not None]


def open_eval_data(config: TrainConfig, source: Source) -> EvalData:
    """Open what a resolved run is measured on, with its classes numbered as the training data's.

    Raises what opening data raises, MismatchError for other classes, InputError for data without
    labels and a share that leaves nothing.
    """
    training, val = source.samples(), None
    share = split_share(config.val)
    if share is not None:
        training, val = hold_out(source, share, config.limit_seed)
    elif config.val is not None:
        val = open_validation(config.val, source)
    test = None if config.test is None else open_validation(config.test, source, flag="--test")
    return EvalData(training=training, val=val, test=test)


def shared_data(source: Source, eval_data: EvalData) -> list[str]:
    """Return a note for each data set that a figure depends on twice: such figures are too good."""
    own = source.dataset.samples().card()
    cards = {
        name: data.dataset.samples().card()
        for name, data in (("validation", eval_data.val), ("test", eval_data.test))
        if data is not None
    }
    held_out = eval_data.val is not None and len(eval_data.training) < len(source.samples())
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
class RunData:
    """All data of a run, checked against each other; ``notes`` say what a user may not expect."""

    source: Source
    order: BatchOrder
    eval_data: EvalData
    notes: tuple[str, ...]


def open_run_data(config: TrainConfig, token: str | None) -> RunData:
    """Open a resolved run's data and store.

    Raises MismatchError, InputError, NotFound, Denied, Unreachable or Damaged before any work.
    """
    source, notes = open_source(config, token)
    eval_data = open_eval_data(config, source)
    notes += shared_data(source, eval_data)
    left, omitted = without_classes(source, eval_data.training, config.omit_classes)
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
    order = BatchOrder(
        samples=samples,
        others=others,
        seed=config.seed,
        batch_size=config.batch_size,
        view_count=source.view_count,
        epochs=config.epochs,
    )
    notes += [*omitted, *config.method_object.remarks(config.epochs)]
    return RunData(source=source, order=order, eval_data=eval_data, notes=tuple(notes))


def _refuse_unlabelled(config: TrainConfig, source: Source, samples: Indices) -> None:
    if not config.method_object.needs_teacher and (source.dataset.labels[samples] < 0).all():
        raise InputError(
            f"{source.dataset.name}: no label is known, and method {config.method!r} learns from "
            "labels alone: use --method kd with a store"
        )
