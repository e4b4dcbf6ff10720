"""Sizes, shares, durations and tables as text for people, and sizes read back from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from logitstore.errors import InputError

_SIZES = {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def printable(text: str) -> str:
    """Return a text that came from a file or a server without what could steer a terminal.

    Control characters, newlines among them, and invisible or directional ones become escapes, so
    that it stays on its line and shows what it holds.

    >>> print(printable("a\\x1b[2Jb"))
    a\\x1b[2Jb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of padded columns: the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        padded[0] = row[0].ljust(widths[0])
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def size(count: float) -> str:
    """Return bytes as a person reads them: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def parse_size(what: str, text: str) -> int:
    """Return the bytes of ``2GiB``, ``1500 MiB``, ``0.5GiB`` or a plain number.

    InputError names ``what``.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]iB)?", text.strip())
    count = int(float(parts[1]) * _SIZES[parts[2]]) if parts else 0
    if count == 0:
        raise InputError(
            f"{what} {text!r}: expected a size above 0 such as 2GiB, 1500MiB or plain bytes"
        )
    return count


def percent(share: float | None) -> str:
    """Return a share as percent, or a dash."""
    return "-" if share is None else f"{100 * share:.2f} %"


def figure(value: Any) -> str:
    """Return a number with six digits; anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_DURATIONS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Return seconds as a person reads them, in at most two units.

    >>> duration(4325)
    '1 h 12 min'
    """
    for (unit, worth), (smaller, part) in pairwise(_DURATIONS):
        if seconds >= worth:
            large, small = divmod(round(seconds / part), worth // part)
            return f"{large} {unit}" + (f" {small} {smaller}" if small else "")
    return f"{seconds:.2g} s" if seconds >= 1 else "under 1 s"
