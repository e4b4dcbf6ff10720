"""Name the methods: the table leads from a name to a frozen dataclass, and describes each.

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


def make_method(name: str, values: Mapping[str, Any]) -> Method:
    """Return the method with these hyper-parameters; None means its default.

    InputError for one that the method does not have, naming the methods that do.
    """
    kind = find_method(name)
    chosen = {key: value for key, value in values.items() if value is not None}
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
    return asdict(method)


def hyper_parameter_types() -> dict[str, Any]:
    """Return every hyper-parameter that a method has, with its type, in the table's order."""
    types: dict[str, Any] = {}
    for kind in METHODS.values():
        hints = get_type_hints(kind)
        types |= {name: hints[name] for name in _names(kind)}
    return types


def describe_methods(name: str | None = None) -> list[dict[str, Any]]:
    """Return each method (or the named one): summary, needs, hyper-parameters with defaults."""
    chosen = METHODS if name is None else {name: find_method(name)}
    return [
        {
            "method": name,
            "summary": summary(name),
            "needs_teacher": kind.needs_teacher,
            "needs_past": kind().predictions_needed is not None,
            "one_label": kind.one_label,
            "per_batch": kind.per_batch,
            "hyper_parameters": hyper_parameters(kind()),
        }
        for name, kind in chosen.items()
    ]


def summary(name: str) -> str:
    """Return what the method minimises, in one line: the first of its docstring."""
    first = (find_method(name).__doc__ or "").split("\n")[0]
    return first.split("``: ", 1)[-1].replace("``", "")


def _names(kind: type[Method]) -> list[str]:
    return [field.name for field in fields(kind)]
