"""Open all data of a run: the training data with their teacher, validation and test data.

Validation data choose the best epoch and a temperature; test data are measured once and choose
nothing.  Nothing here trains or measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.bind import open_source, open_validation
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.requirements import refuse_samples
from logitstore.trainer.data.samples import Choice, choose_samples, omitted_numbers, with_noise
from logitstore.trainer.data.source import Source


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """The data that a run is measured on; None where there are none."""

    val: Source | None
    test: Source | None

    def sources(self) -> list[Source]:
        """Return the data that the run has."""
        return [source for source in (self.val, self.test) if source is not None]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All data of a run, checked against each other; ``notes`` say what a user may not expect."""

    source: Source
    order: BatchOrder
    eval_data: EvalData
    notes: tuple[str, ...]


def open_run_data(config: TrainConfig, token: str | None) -> RunData:
    """Open a resolved run's data and store; what does not fit together is refused before any work.

    The settings were checked against each other when they were made (``config.checks``).  Here the
    data are checked against the store (``bind``), then the method against rows and labels
    (``requirements``).  Raises MismatchError, InputError, NotFound, Denied, Unreachable or Damaged.
    """
    source, notes = open_source(config, token)
    choice = choose_samples(config, source)
    refuse_samples(config, source, choice)
    eval_data = _open_eval_data(config, source, choice)
    notes += [*_shared_data(source, eval_data), *_omitted(config, choice)]
    order = BatchOrder(
        samples=choice.samples,
        others=choice.others,
        seed=config.seed,
        batch_size=config.batch_size,
        view_count=source.view_count,
        epochs=config.epochs,
    )
    if config.label_noise:
        source = with_noise(
            source,
            order.all_samples(),
            config.label_noise,
            config.label_noise_seed,
            omitted_numbers(source, config.omit_classes),
        )
    notes += config.method_object.remarks(config.epochs)
    return RunData(source=source, order=order, eval_data=eval_data, notes=tuple(notes))


def _open_eval_data(config: TrainConfig, source: Source, choice: Choice) -> EvalData:
    val = None
    if choice.held_out is not None:
        val = source.evaluation(choice.held_out)
    elif config.val is not None:
        val = open_validation(config.val, source)
    test = None if config.test is None else open_validation(config.test, source, flag="--test")
    return EvalData(val=val, test=test)


def _shared_data(source: Source, eval_data: EvalData) -> list[str]:
    """Return a note for each data set that a figure depends on twice: such figures are too good."""
    training = source.dataset.samples().card()
    cards = {
        name: data.dataset.samples().card()
        for name, data in (("validation", eval_data.val), ("test", eval_data.test))
        if data is not None
    }
    held_out = eval_data.val is not None and eval_data.val.subset is not None
    notes = [
        f"the {name} data, {card.name}, are the training data"
        for name, card in cards.items()
        if card == training and not (name == "validation" and held_out)
    ]
    if len(cards) == 2 and cards["test"] == cards["validation"] != training:
        notes.append(
            f"the test data, {cards['test'].name}, are the validation data: the best epoch and the "
            "temperature were chosen on them"
        )
    return notes


def _omitted(config: TrainConfig, choice: Choice) -> list[str]:
    """Return a note of how many samples an omitted class takes away."""
    if not config.omit_classes:
        return []
    listed = ",".join(map(str, config.omit_classes))
    count = len(choice.training)
    return [
        f"{count - len(choice.eligible):,} of {count:,} samples omitted, those of class {listed}"
    ]
