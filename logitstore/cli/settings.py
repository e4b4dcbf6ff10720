"""Commands that take the settings of a training run as options.

The options are those of the settings' fields, hyper-parameters included; they are made when such a
command runs or is asked for its help, so that no other command pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from logitstore.trainer.methods.options import Option


class RunCommand(TyperCommand):
    """A command with its own options and, under headings, those of a run's settings.

    A setting that an option of its own replaces, or that is in ``without``, is none of them.
    """

    allow_extra_args = True
    ignore_unknown_options = True
    without: ClassVar[frozenset[str]] = frozenset()
    own_options_first: ClassVar[bool] = False

    def options_by_heading(self) -> dict[str, list[Option]]:
        """Return the settings that are options here."""
        from logitstore.trainer.config.fields import options_by_heading

        absent = self.without | {param.name for param in self.params}
        return {
            heading: [option for option in options if option.field not in absent]
            for heading, options in options_by_heading().items()
        }

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the headings with their options, and the command's own options."""
        if self.own_options_first:
            super().format_options(ctx, formatter)
        for heading, options in self.options_by_heading().items():
            with formatter.section(heading):
                formatter.write_dl([option.record() for option in options])
        if not self.own_options_first:
            super().format_options(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the command's own options, and those of the settings."""
        items: list[Any] = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            kind = type(super().shell_complete(ctx, "--help")[0])
            items += [
                kind(option.flag, help=option.help)
                for options in self.options_by_heading().values()
                for option in options
                if option.flag.startswith(incomplete)
            ]
        return items


def given_settings(ctx: typer.Context) -> dict[str, Any]:
    """Return the settings that the command line gives, by name."""
    from logitstore.trainer.methods.options import parse_options

    assert isinstance(ctx.command, RunCommand)
    options = [each for part in ctx.command.options_by_heading().values() for each in part]
    return parse_options(
        ctx.args, options, [name for each in ctx.command.params for name in each.opts]
    )
