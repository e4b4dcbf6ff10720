"""The table of methods: from a name to a frozen dataclass.

Its fields are the method's hyper-parameters with their defaults; they become settings of a run and
options of the command line by themselves.  The training loop knows no method by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_type_hints

from logitstore.errors import InputError, UnknownName
from logitstore.trainer.methods import distillation, labels
from logitstore.trainer.methods.base import Method

METHODS: dict[str, type[Method]] = {
    "ce": labels.CrossEntropy,
    "label-smoothing": labels.LabelSmoothing,
    "kd": distillation.Distillation,
    "dkd": distillation.DecoupledKD,
    "tckd": distillation.TargetClassKD,
    "nckd": distillation.NonTargetClassKD,
    "tf-kd-self": distillation.TeacherFreeSelf,
    "tf-kd-reg": labels.TeacherFreeReg,
    "ps-kd": labels.ProgressiveSelf,
    "dist": distillation.Relations,
    "nkd": distillation.NormalizedKD,
    "ttm": distillation.TransformedTeacher,
    "wttm": distillation.WeightedTransformedTeacher,
}


def find_method(name: str) -> type[Method]:
    """Return the method of this name; UnknownName lists the known ones."""
    if name not in METHODS:
        raise UnknownName.among("method", name, METHODS)
    return METHODS[name]


def make_method(name: str, given: Mapping[str, Any]) -> Method:
    """Return the method with these hyper-parameters; None means its default.

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
    return kind(**{**kind.defaults(chosen), **chosen})


def hyper_parameters(method: Method) -> dict[str, Any]:
    """Return a method's hyper-parameters with their values."""
    return dict(asdict(method))


def hyper_parameter_types() -> dict[str, Any]:
    """Return every hyper-parameter that a method has, with its type, in the table's order."""
    found: dict[str, Any] = {}
    for kind in METHODS.values():
        hints = get_type_hints(kind)
        found |= {name: hints[name] for name in _names(kind)}
    return found


def _names(kind: type[Method]) -> list[str]:
    return [field.name for field in fields(kind)]
