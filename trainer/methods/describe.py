"""The methods as data: what ``logitstore methods`` prints."""

from __future__ import annotations

from typing import Any

from logitstore.trainer.methods.table import METHODS, find_method, hyper_parameters


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
