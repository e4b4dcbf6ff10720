"""What the command line shows: errors and exit codes, progress, tables and sizes.

Imported by ``cli`` at start, so the top imports only the standard library and typer.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from logitstore.errors import InputError, LogitstoreError, MissingExtra

INTERRUPTED = 130
_UNITS = {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TRAIN = (
    *("torch", "torchvision", "PIL", "scipy", "sklearn", "tensorboard", "tomli_w"),
    *("matplotlib", "jinja2", "markupsafe", "threadpoolctl"),
)
_SERVE = ("fastapi", "uvicorn", "starlette", "httptools", "uvloop")


class Commands(TyperGroup):
    """Runs a command; errors that users can cause become one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LogitstoreError as error:
            fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            extra = "train" if package in _TRAIN else "serve" if package in _SERVE else None
            if extra is None:
                raise
            missing = MissingExtra.for_command(error, extra)
            fail(str(missing), missing.exit_code)
        except KeyboardInterrupt:
            fail("interrupted: the same command goes on from here", INTERRUPTED)


def fail(message: str, code: int) -> None:
    """Print an error and end with its exit code."""
    label = typer.style("error:", fg="red", bold=True) if sys.stderr.isatty() else "error:"
    typer.echo(f"{label} {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def shown_progress() -> Iterator[Any]:
    """A bar on a terminal, plain lines elsewhere; on stderr."""
    from logitstore.progress import Bar, Lines

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Lines()
        return
    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()


def emit(as_json: bool, data: Any, lines: Sequence[str]) -> None:
    """Print ``data`` as JSON, or ``lines`` for a person."""
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    else:
        for line in lines:
            typer.echo(line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their width; the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        first, *rest = (cell for cell in row)
        padded = [first.ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def size(count: float) -> str:
    """Bytes for a person: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def parse_size(what: str, text: str) -> int:
    """``2GiB``, ``1500 MiB``, ``0.5GiB`` or plain bytes -> bytes; InputError names ``what``."""
    read = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]iB)?", text.strip())
    count = int(float(read[1]) * _UNITS[read[2]]) if read else 0
    if count == 0:
        raise InputError(
            f"{what} {text!r}: expected a size above 0 such as 2GiB, 1500MiB or plain bytes"
        )
    return count


def percent(share: float | None) -> str:
    """A share as percent, or a dash."""
    return "-" if share is None else f"{100 * share:.2f} %"


def figure(value: Any) -> str:
    """A number for a person, six digits; anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
