"""Move snapshots: the commands ``import``, ``export``, ``transcode`` and ``discard``."""

from __future__ import annotations

from typing import Annotated

import typer

from logitstore.cli.console import progress_on_stderr
from logitstore.cli.options import (
    AtTemperature,
    Encoding,
    Fresh,
    Json,
    MaxKl,
    RowDigests,
    SnapshotName,
    Store,
    TokenFile,
    read_token,
)

commands = typer.Typer()


@commands.command("import")
def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help=".npy, .npz[?key=] or .safetensors[?key=].")
    ],
    labels: Annotated[str, typer.Option(metavar="FILE", help="Labels (N,), -1 where unknown.")],
    out: Annotated[str, typer.Option(metavar="STORE", help="Store to make or add to.")],
    snapshot: Annotated[str, typer.Option(help="The snapshot's name.")],
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
    row_digests: RowDigests = "auto",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Make a snapshot of logits from elsewhere.

    The logits are (N, C) or (V, N, C); nothing binds them to images.

    \b
    logitstore import logits.npy --labels labels.npy --out c10.zarr --snapshot elsewhere
    """
    from logitstore.cli.show.builds import print_built
    from logitstore.derive.files import import_logits
    from logitstore.format.choice import EncodingRequest

    request = EncodingRequest(
        text=encoding, max_kl=max_kl, at_temperature=at_temperature, row_digests=row_digests
    )
    with progress_on_stderr() as progress:
        import_logits(file, labels, out, snapshot, request=request, fresh=fresh, progress=progress)
    print_built(out, [snapshot], as_json, request)


@commands.command()
def discard(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store's path.")],
    snapshot: Annotated[str, typer.Option(help="Name of the unfinished snapshot.")],
) -> None:
    """Delete an unfinished build; snapshots stay.

    \b
    logitstore discard c10.zarr --snapshot resnet56
    """
    from logitstore.writing.opening import discard_unfinished

    discard_unfinished(store, snapshot)
    typer.echo(f"{store}: the unfinished build of {snapshot} is gone")


@commands.command()
def transcode(
    store: Store,
    out: Annotated[str, typer.Option(metavar="STORE", help="Store to make or add to.")],
    snapshot: SnapshotName = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the new snapshot, if not the same.")
    ] = None,
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
    row_digests: RowDigests = "auto",
    fresh: Fresh = False,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Keep a snapshot's rows in another encoding.

    No teacher is needed. Running the same command again resumes.

    \b
    logitstore transcode c100.zarr --encoding uint8 --out small.zarr
    logitstore transcode c100.zarr --encoding auto --max-kl 1e-3 --out small.zarr
    """
    from logitstore.cli.show.builds import print_built
    from logitstore.derive.transcode import transcode as run
    from logitstore.format.choice import EncodingRequest
    from logitstore.reading.opening import open_snapshot

    request = EncodingRequest(
        text=encoding, max_kl=max_kl, at_temperature=at_temperature, row_digests=row_digests
    )
    opened, source = open_snapshot(store, snapshot, read_token(token_file), besides=name)
    with progress_on_stderr() as progress:
        run(opened, source, out, request, name=name, fresh=fresh, progress=progress)
    print_built(out, [name or source.name], as_json, request)


@commands.command()
def export(
    store: Store,
    out: Annotated[str, typer.Option(metavar="FILE", help=".npy, .npz or .safetensors.")],
    snapshot: SnapshotName = None,
    token_file: TokenFile = None,
) -> None:
    """Write a snapshot's logits to one file.

    They are decoded to float32, (N, C) or (V, N, C).

    \b
    logitstore export c10.zarr --snapshot resnet56 --out logits.npy
    """
    from logitstore.derive.files import export_logits
    from logitstore.reading.opening import open_snapshot

    opened, source = open_snapshot(store, snapshot, read_token(token_file))
    with progress_on_stderr() as progress:
        shape = export_logits(opened, source, out, progress)
    typer.echo(f"{out}: float32 {shape}")
