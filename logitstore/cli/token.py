"""Make, list and end the tokens of a server: the commands ``token new``, ``ls`` and ``revoke``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from logitstore.cli.console import emit, note
from logitstore.cli.options import Json
from logitstore.text import table

token_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Tokens that a server accepts."
)

File = Annotated[Path, typer.Argument(help="The server's token file.")]


@token_app.command()
def new(
    file: File,
    days: Annotated[
        int | None, typer.Option(min=1, help="Days that it is accepted; for ever without it.")
    ] = None,
    name: Annotated[str, typer.Option(help="Whose it is; it only stands in the list.")] = "",
    replaces: Annotated[
        str | None, typer.Option(metavar="ID", help="The token that it replaces.")
    ] = None,
    overlap_days: Annotated[
        int, typer.Option(min=0, help="Days that the replaced one is accepted still.")
    ] = 0,
) -> None:
    """Make a token, add it to FILE and print it, this once: the file keeps its SHA-256.

    A running server accepts it from the next request on.

    \b
    logitstore token new tokens --days 90 --name alice
    logitstore token new tokens --days 90 --replaces 1f0c2a9be771 --overlap-days 7
    """
    from logitstore.api.guard.token_file import add_token

    now = datetime.now(UTC)
    text = add_token(
        file,
        expires=None if days is None else now + timedelta(days=days),
        name=name,
        replaces=replaces,
        until=now + timedelta(days=overlap_days),
    )
    note(f"{file}: the token is added; clients send it from LOGITSTORE_TOKEN")
    typer.echo(text)


@token_app.command()
def ls(file: File, as_json: Json = False) -> None:
    """List the tokens of FILE by their ids, which are the beginnings of their SHA-256.

    \b
    logitstore token ls tokens
    """
    from logitstore.api.guard.token_file import check_token_file

    tokens = check_token_file(file)
    document = [
        {
            "id": token.id,
            "name": token.name,
            "expires": token.expires.isoformat() if token.expires else None,
            "expired": token.expired,
        }
        for token in tokens
    ]
    rows = [
        (
            token.id,
            token.name or "-",
            f"{token.expires:%Y-%m-%d %H:%M}" if token.expires else "never",
            "expired" if token.expired else "accepted",
        )
        for token in tokens
    ]
    emit(as_json, document, table(("id", "name", "expires (UTC)", "state"), rows))


@token_app.command()
def revoke(file: File, token: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Drop a token from FILE: a running server refuses it from the next request on.

    \b
    logitstore token revoke tokens 1f0c2a9be771
    """
    from logitstore.api.guard.token_file import revoke_token

    revoke_token(file, token)
    note(f"{file}: token {token} is revoked")
