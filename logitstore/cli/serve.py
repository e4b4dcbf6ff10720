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
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Network of proxies whose X-Forwarded-For counts; may repeat."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log every request, not only errors.")
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
    logitstore token new tokens --days 90
    logitstore serve stores/ --host 0.0.0.0 --token-file tokens
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
        trusted_proxies=tuple(trusted_proxy or ()),
        access_log=access_log,
        warm=warm,
        cache=cache,
    )
    run(settings)
