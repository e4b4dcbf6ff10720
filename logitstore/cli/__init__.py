"""The command line: one file per noun, and this one, which says which commands there are.

Commands are a signature and one library call.  They alone import ``logitstore.api`` and
``logitstore.trainer``, inside their bodies, as they do all that is heavy.
"""

from logitstore.cli import build, demo, inspect, serve, snapshots, specialists, studies, train
from logitstore.cli.app import app, main
from logitstore.cli.cache import cache_app

__all__ = ["app", "main"]

for noun in (build, snapshots, inspect, serve, demo, train, specialists, studies):
    app.add_typer(noun.commands)
app.add_typer(cache_app, name="cache")
