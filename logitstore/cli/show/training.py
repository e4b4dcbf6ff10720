from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from logitstore.text import table


def _bias_lines(found: dict[str, Any]) -> list[str]:
    shifts = ", ".join(
        f"class {name} by {shift:+.4f}"
        for name, shift in zip(found["names"] or found["classes"], found["shift"], strict=True)
    )
    rows = []
    for where in ("data", "test"):
        for when in ("before", "after"):
            figures = (found[where] or {}).get(when)
            if figures is not None:
                rows.append(
                    (
                        f"{where}, {when}",
                        f"{figures['errors']:,} of {figures['samples']:,}",
                        f"{100 * figures['top1']:.2f} %",
                        f"{figures['class_errors']:,} of {figures['class_samples']:,}",
                    )
                )
    lines = [f"shifted by {found['by']}: {shifts}"]
    if rows:
        lines += table(("", "errors", "top-1", "errors of these classes"), rows)
    return [*lines, f"written: {found['out']}"] if found["out"] else lines


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
