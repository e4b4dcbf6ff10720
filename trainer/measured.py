"""What a run is measured on, beside its training data: validation and test data, and the figures.

Validation data choose (the best epoch, a temperature); test data are measured once and choose
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.binding import open_validation
from trainer.calibration import fit_temperature, fitted_figures
from trainer.config import TrainConfig
from trainer.data import Indices, Source
from trainer.evaluate import Logits, labels_of, measure
from trainer.holdout import hold_out, split_share


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


def test_figures(gather: Callable[[Source], Logits], measured: Measured) -> dict[str, float]:
    """The figures on the test data, also after one temperature fitted on the validation data.

    ``gather`` gives the logits of the weights to measure, of all samples that a source has.
    """
    assert measured.test is not None
    assert measured.val is not None  # a resolved run with test data has some
    temperature = fit_temperature(gather(measured.val), labels_of(measured.val))
    logits, labels = gather(measured.test), labels_of(measured.test)
    return measure(logits, labels) | fitted_figures(logits, labels, temperature)
