"""Register all commands of the command line; there is one file for each noun.

A command is a signature and one library call.  Commands alone import ``logitstore.api`` and
``logitstore.trainer``, and they import what is heavy inside their bodies.
"""

from logitstore.cli import build, demo, inspect, serve, snapshots, specialists, studies, train
from logitstore.cli.app import app, main
from logitstore.cli.cache import cache_app
from logitstore.cli.token import token_app

__all__ = ["app", "main"]

for noun in (build, snapshots, inspect, serve, demo, train, specialists, studies):
    app.add_typer(noun.commands)
app.add_typer(cache_app, name="cache")
app.add_typer(token_app, name="token")
