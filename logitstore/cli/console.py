"""Report on the command line: errors as one message and an exit code, progress, JSON or lines.

The top imports little but the standard library and typer, as every start of a command runs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from logitstore.errors import LogitstoreError, MissingExtra
from logitstore.text import printable

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_TRAIN = (
    *("torch", "torchvision", "PIL", "scipy", "sklearn", "tensorboard", "tomli_w"),
    *("matplotlib", "jinja2", "markupsafe", "threadpoolctl"),
)
"""Packages that the extra ``train`` installs."""

_SERVE = ("fastapi", "uvicorn", "starlette", "httptools", "uvloop")
"""Packages that the extra ``serve`` installs."""


class Commands(TyperGroup):
    """Run a command and turn errors that users can cause into one message and an exit code."""

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
    typer.echo(f"{label} {printable(message)}", err=True)
    raise typer.Exit(code)


def note(text: str) -> None:
    """Print a line beside the results."""
    typer.echo(printable(text), err=True)


@contextmanager
def progress_on_stderr() -> Iterator[Any]:
    """Give a progress bar on a terminal, plain lines elsewhere, both on stderr."""
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
    """Print ``data`` as JSON, or ``lines`` for a person, whatever stands in the names in them."""
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    else:
        for line in lines:
            typer.echo(printable(line))
