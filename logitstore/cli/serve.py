"""Serve stores over HTTP: the command ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from logitstore.cli.options import CacheDir

commands = typer.Typer()


@commands.command()
def serve(
    root: Annotated[Path, typer.Argument(help="A store, or a folder of stores.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but loopback needs tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    workers: Annotated[int, typer.Option(help="Number of server processes.")] = 1,
    token_file: Annotated[
        Path | None, typer.Option(help="File of bearer tokens, one a line, mode 0600.")
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Serve a public address without tokens.")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Decode all snapshots before /readyz says 200.")
    ] = False,
    cache: CacheDir = None,
) -> None:
    """Serve stores over HTTP, without torch.

    A snapshot is decoded into the cache when its rows are first asked for.

    \b
    logitstore serve stores/ --warm
    logitstore serve stores/ --host 0.0.0.0 --token-file tokens.txt
    """
    from logitstore.api.server.process import serve as run
    from logitstore.api.settings import Settings

    settings = Settings(
        root=root,
        host=host,
        port=port,
        workers=workers,
        token_file=token_file,
        insecure_no_auth=insecure_no_auth,
        warm=warm,
        cache=cache,
    )
    typer.echo(f"serving {root} at http://{host}:{port} (Ctrl-C stops)", err=True)
    run(settings)
