"""Make commands that take the fields of a dataclass of settings as options.

The options are made when such a command runs or is asked for its help, so that no other command
pays for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from logitstore.options import Option


class SettingsCommand(TyperCommand):
    """Takes its own options and, under headings, those of settings.

    A setting that its own option replaces, or that is in ``without``, is no option.
    Words without an option belong to the setting ``positional``.
    """

    allow_extra_args = True
    ignore_unknown_options = True
    without: ClassVar[frozenset[str]] = frozenset()
    positional: ClassVar[str | None] = None
    own_options_first: ClassVar[bool] = False

    def all_options(self) -> dict[str, list[Option]]:
        """Return all settings as options, under their headings."""
        raise NotImplementedError

    def options_by_heading(self) -> dict[str, list[Option]]:
        """Return the settings that are options here."""
        absent = self.without | {param.name for param in self.params}
        return {
            heading: [option for option in options if option.field not in absent]
            for heading, options in self.all_options().items()
        }

    def make_parser(self, ctx: Any) -> Any:
        """Return a parser that takes ``-h`` as a whole word only.

        Of an unknown word such as ``-fresh`` it would otherwise try each letter, and find the h.
        """
        parser = super().make_parser(ctx)
        parser._long_opt.update(parser._short_opt)
        parser._short_opt.clear()
        return parser

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


class RunCommand(SettingsCommand):
    """Takes the settings of a training run."""

    def all_options(self) -> dict[str, list[Option]]:
        from logitstore.trainer.config.fields import options_by_heading

        return options_by_heading()


class BuildCommand(SettingsCommand):
    """Takes the settings of a build."""

    positional = "teachers"

    def all_options(self) -> dict[str, list[Option]]:
        from logitstore.options import options_of
        from logitstore.precompute.building.config import BuildConfig

        return {"The build": options_of(BuildConfig)}


def command_settings(ctx: typer.Context) -> dict[str, Any]:
    """Return the settings that stand on the command line, by name."""
    from logitstore.options import parse_options

    command = ctx.command
    assert isinstance(command, SettingsCommand)
    options = [option for part in command.options_by_heading().values() for option in part]
    names = [name for param in command.params for name in param.opts]
    return parse_options(ctx.args, options, names, command.positional)
