"""The methods listed: what ``logitstore methods`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.methods import METHODS, find_method, hyper_parameters


def describe_methods(name: str | None = None) -> list[dict[str, Any]]:
    """Each method (or the named one): summary, needs, hyper-parameters with their defaults."""
    chosen = METHODS if name is None else {name: find_method(name)}
    return [
        {
            "method": name,
            "summary": summary(name),
            "needs_teacher": kind.needs_teacher,
            "needs_past": kind.needs_past,
            "one_label": kind.one_label,
            "per_batch": kind.per_batch,
            "hyper_parameters": hyper_parameters(kind()),
        }
        for name, kind in chosen.items()
    ]


def summary(name: str) -> str:
    """What the method minimises, in one line: the first of its docstring."""
    first = (find_method(name).__doc__ or "").split("\n")[0]
    return first.split("``: ", 1)[-1].replace("``", "")


def method_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same for a person."""
    said = {
        "needs_teacher": "a store",
        "needs_past": "its own past predictions",
        "one_label": "one known label for each image",
        "per_batch": "whole batches",
    }
    lines = []
    for entry in found:
        needs = [words for key, words in said.items() if entry[key]] or ["labels"]
        flags = [_flag(name, value) for name, value in entry["hyper_parameters"].items()]
        lines += [
            f"{entry['method']:16} {entry['summary']}",
            f"{'':16} needs {', '.join(needs)}",
            *([f"{'':16} {' '.join(flags)}"] if flags else []),
        ]
    return lines


def _flag(name: str, value: Any) -> str:
    """An option with its default; in brackets if it is off."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return f"[{flag} N]"
    return f"[{flag}]" if value is False else f"{flag} {value}"
