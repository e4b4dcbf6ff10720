"""The methods: one table from a name to hyper-parameters, needs, and weighted loss terms.

A method is a frozen dataclass; its fields are its hyper-parameters with their defaults.  The loop
knows no method by name.  Adding one touches ``losses.py``, this file, a test and a row of
``METHODS.md`` (and ``TrainConfig``, if it brings a hyper-parameter that no method had before).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from logitstore.errors import InputError, UnknownName
from trainer import losses
from trainer.data import Mixed


class Outputs(NamedTuple):
    """What a loss may look at.

    Student logits (N, C), labels (N,) int64 with -1 for unknown, teacher logits (N, C) or None, and
    what the images were mixed with or None.
    """

    student: Tensor
    labels: Tensor
    teacher: Tensor | None = None
    mixed: Mixed | None = None

    def by_label(self, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """``measure(labels)``, (N,); of mixed images that of both labels, each by its share."""
        own = measure(self.labels)
        if self.mixed is None:
            return own
        weight = self.mixed.weight
        return weight * own + (1 - weight) * measure(self.mixed.labels)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of the methods: hyper-parameters as fields, ``terms`` to be defined."""

    needs_teacher: ClassVar[bool] = False

    @abstractmethod
    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        """The weighted terms by name, each (N,) in nats; ``epoch`` counts from 0."""

    def loss(self, batch: Outputs, epoch: int) -> Tensor:
        """The sum of the terms: (N,) in nats."""
        return total(self.terms(batch, epoch))


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Method):
    """``ce``: labels only; a teacher's rows, if there are any, are only compared with."""

    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        return {"ce": _hard(batch)}


@dataclass(frozen=True, kw_only=True)
class Distillation(Method):
    """``kd``: ce_weight · CE + kd_weight · T² · KL.

    Two explicit weights, because what "alpha" weighs differs between papers.
    """

    needs_teacher: ClassVar[bool] = True

    temperature: float = 4.0
    ce_weight: float = 0.1
    kd_weight: float = 0.9

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError(f"temperature must be positive, not {self.temperature}")
        if self.ce_weight < 0 or self.kd_weight < 0 or self.ce_weight + self.kd_weight == 0:
            raise InputError(
                f"ce_weight {self.ce_weight} and kd_weight {self.kd_weight} must not be negative, "
                "nor both 0"
            )

    def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
        assert batch.teacher is not None
        soft = losses.kd(batch.student, batch.teacher, temperature=self.temperature)
        return {
            "ce": self.ce_weight * _hard(batch),
            "kd": self.kd_weight * soft,
        }


METHODS: dict[str, type[Method]] = {"ce": CrossEntropy, "kd": Distillation}


def find_method(name: str) -> type[Method]:
    """Look a method up; UnknownName lists the known ones."""
    if name not in METHODS:
        raise UnknownName.among("method", name, METHODS)
    return METHODS[name]


def make_method(name: str, given: Mapping[str, float | None]) -> Method:
    """The method with these hyper-parameters; None means its default.

    InputError for one that the method does not have, naming the methods that do.
    """
    kind = find_method(name)
    chosen = {key: value for key, value in given.items() if value is not None}
    for key in chosen:
        if key not in _names(kind):
            others = [other for other, entry in METHODS.items() if key in _names(entry)]
            raise InputError(
                f"method {name!r} has no {key}: drop --{key.replace('_', '-')}, or use "
                f"--method {' or '.join(others) or '(none has it)'}"
            )
    return kind(**chosen)


def hyper_parameters(method: Method) -> dict[str, float]:
    """A method's hyper-parameters with their values."""
    return dict(asdict(method))


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of terms, in their order: (N,)."""
    return reduce(torch.add, terms.values())


def _hard(batch: Outputs) -> Tensor:
    return batch.by_label(lambda labels: losses.cross_entropy(batch.student, labels))


def _names(kind: type[Method]) -> set[str]:
    return {field.name for field in fields(kind)}
