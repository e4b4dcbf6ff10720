"""Define what a method is: its hyper-parameters, its needs, and the terms of a batch's loss.

The text under a hyper-parameter is its help.  Torch is loaded where a loss is computed, not here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from logitstore.errors import InputError
from logitstore.values import Weight, check_values

if TYPE_CHECKING:
    from torch import Tensor


class Mixed(NamedTuple):
    """Holds the partners' labels int64 (N,), -1 for unknown, and the image's share float32 (N,)."""

    labels: Tensor
    weight: Tensor


class Outputs(NamedTuple):
    """Holds what a loss may look at.

    Student logits (N, C), labels (N,) int64 with -1 for unknown, teacher logits (N, C) or None, and
    what the images were mixed with or None.  ``past`` are probabilities (N, C), the student's own
    of earlier epochs.  ``taught`` (N,) bool: where the teacher's terms count, None: everywhere.
    ``epochs`` is how many the run has.
    """

    student: Tensor
    labels: Tensor
    teacher: Tensor | None = None
    mixed: Mixed | None = None
    past: Tensor | None = None
    taught: Tensor | None = None
    epochs: int = 1

    def by_label(self, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``measure(labels)``, (N,); for mixed images of both labels, each by its share."""
        measured = measure(self.labels)
        if self.mixed is None:
            return measured
        weight = self.mixed.weight
        return weight * measured + (1 - weight) * measure(self.mixed.labels)


class PredictionsNeeded(NamedTuple):
    """Says of how many epochs a student remembers its own predictions, and which ones.

    ``from_eval_pass``: those of a pass in eval mode after each epoch, else those of the steps.
    """

    epochs: int
    from_eval_pass: bool


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of the methods: hyper-parameters are fields, and ``terms`` is to be defined.

    ``needs_teacher``: it learns from a store's rows.  ``one_label``: it needs exactly one known
    label for each image.  ``per_batch``: a term couples the samples of a batch, which then cannot
    be cut in parts.
    """

    needs_teacher: ClassVar[bool] = False
    one_label: ClassVar[bool] = False
    per_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_values(self)

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that depend on the hyper-parameters that were chosen."""
        return {}

    @property
    def predictions_needed(self) -> PredictionsNeeded | None:
        """Return which of its own predictions a student must remember, None: none."""
        return None

    @property
    def teacher_temperature(self) -> float | None:
        """Return the one temperature at which the teacher is used, None: none or several."""
        return None

    @property
    def ensemble_temperature(self) -> float | None:
        """Return the temperature at which several teachers' distributions are averaged, None: none.

        A method that only compares itself with a teacher compares at temperature 1.
        """
        return self.teacher_temperature if self.needs_teacher else 1.0

    @property
    def needs_tail(self) -> str | None:
        """Return why ``topk`` rows, which share the tail's mass evenly, cannot teach this method.

        None: they can, if they are good at the teacher's temperature.
        """
        if self.one_label:
            return "renormalises the classes beside the label, which makes the tail's error grow"
        if self.per_batch:
            return "correlates each class over the batch, also where a row left it out"
        return "takes the teacher at several temperatures, the tail's mass is right at 1 only"

    def refuse_run(self, epochs: int) -> None:
        """Refuse a run of so many epochs in which something would never come: InputError."""
        return

    def remarks(self, epochs: int) -> list[str]:
        """Return what a user should know before a run of so many epochs."""
        return []

    @abstractmethod
    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        """Return the weighted terms by name, each (N,) in nats; ``epoch`` counts from 0."""

    def loss(self, batch: Outputs, epoch: int) -> Tensor:
        """Return the sum of the terms: (N,) in nats."""
        return total(self.terms(batch, epoch))


@dataclass(frozen=True, kw_only=True)
class Weighted(Method):
    """Base: a cross-entropy and one more term, each with a weight of its own.

    There are two weights because papers differ in what their "alpha" weighs.
    """

    ce_weight: Weight = 1.0
    """Weight of the cross-entropy with the labels."""
    kd_weight: Weight = 1.0
    """Weight of the method's other term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ce_weight == self.kd_weight == 0:
            raise InputError("ce_weight and kd_weight are both 0: nothing would be learned")


def hard(batch: Outputs) -> Tensor:
    """Return the cross-entropy with the labels, (N,) in nats; of mixed images with both labels."""
    from logitstore.trainer import losses

    return batch.by_label(lambda labels: losses.cross_entropy(batch.student, labels))


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms, added in their order: (N,)."""
    return reduce(add, terms.values())
