"""Define the command line itself: its name, its help, its exit codes and ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

from logitstore.cli.console import Commands
from logitstore.version import __version__

app = typer.Typer(
    cls=Commands,
    name="logitstore",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Knowledge distillation without a teacher in the room.

    Teachers run once and their logits are kept in verified stores; a server hands them to trainers;
    students train at the cost of plain cross-entropy.

    Exit codes: 0 done, 1 a check failed, 2 wrong usage or input, 3 unfinished (run the same command
    again), 130 interrupted (the same command goes on).""",
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"logitstore {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: the entry point of the console script."""
    app()
