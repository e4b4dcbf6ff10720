"""Write methods, figures of runs and corrected biases as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from logitstore.text import figure, table


def figure_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure, without those that are None or empty."""
    present = {name: value for name, value in figures.items() if value not in (None, (), [], "")}
    width = max(map(len, present), default=0)
    return [f"{name:{width}} {figure(value)}" for name, value in present.items()]


def bias_lines(shifted: dict[str, Any]) -> list[str]:
    """Return what ``correct-bias`` changed, and the errors before and after."""
    shifts = ", ".join(
        f"class {name} by {shift:+.4f}"
        for name, shift in zip(
            shifted["names"] or shifted["classes"], shifted["shift"], strict=True
        )
    )
    rows = []
    for where in ("data", "test"):
        for when in ("before", "after"):
            figures = (shifted[where] or {}).get(when)
            if figures is not None:
                rows.append(
                    (
                        f"{where}, {when}",
                        f"{figures['errors']:,} of {figures['samples']:,}",
                        f"{100 * figures['top1']:.2f} %",
                        f"{figures['class_errors']:,} of {figures['class_samples']:,}",
                    )
                )
    lines = [f"shifted by {shifted['by']}: {shifts}"]
    if rows:
        lines += table(("", "errors", "top-1", "errors of these classes"), rows)
    return [*lines, f"written: {shifted['out']}"] if shifted["out"] else lines


def method_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what ``describe_methods`` says, three lines for each method."""
    needs_words = {
        "needs_teacher": "a store",
        "needs_past": "its own past predictions",
        "one_label": "one known label for each image",
        "per_batch": "whole batches",
    }
    lines = []
    for entry in entries:
        needs = [words for key, words in needs_words.items() if entry[key]] or ["labels"]
        flags = [_flag(name, value) for name, value in entry["hyper_parameters"].items()]
        lines += [
            f"{entry['method']:16} {entry['summary']}",
            f"{'':16} needs {', '.join(needs)}",
            *([f"{'':16} {' '.join(flags)}"] if flags else []),
        ]
    return lines


def _flag(name: str, value: Any) -> str:
    """Return an option with its default, in brackets if it is off."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return f"[{flag} N]"
    return f"[{flag}]" if value is False else f"{flag} {value}"
