"""Run commands of ``logitstore`` in this process, as a person would type them."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from logitstore.cli import app


def run(*arguments: object) -> Result:
    """What a command prints, and its exit code."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object, code: int = 2) -> str:
    """The one message of a command that ends with ``code`` and no traceback."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.count("error:") == 1
    return result.stderr
