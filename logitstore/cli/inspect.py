"""``logitstore ls``, ``inspect`` and ``verify``: look at stores, and check them."""

from __future__ import annotations

from typing import Annotated

import typer

from logitstore.cli.console import emit, progress_on_stderr
from logitstore.cli.options import Device, Json, Store, TokenFile, TrustRun, read_token
from logitstore.errors import InputError
from logitstore.text import size

commands = typer.Typer()


@commands.command("ls")
def list_(
    location: Annotated[
        str, typer.Argument(metavar="STORE|FOLDER|URL", help="Where to look.")
    ] = ".",
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List stores and their snapshots.

    \b
    logitstore ls stores/
    logitstore ls http://host:8000
    """
    from logitstore.cli.show.stores import listing_lines
    from logitstore.reading.describe import list_location

    rows = list_location(location, read_token(token_file))
    emit(as_json, rows, listing_lines(rows))


@commands.command()
def inspect(
    store: Store,
    snapshot: Annotated[list[str] | None, typer.Option(help="Only these snapshots.")] = None,
    expect_root: Annotated[
        str | None, typer.Option(help="Refuse any other root than this.")
    ] = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show what a store holds, and its roots.

    Teacher, top-1, dataset, views, encoding, bytes, fidelity.

    \b
    logitstore inspect c10.zarr
    """
    from logitstore.cli.show.stores import store_lines
    from logitstore.reading.describe import describe_store
    from logitstore.reading.opening import chosen_snapshot, open_store
    from logitstore.reading.opening import expect_root as check_root

    opened = open_store(store, read_token(token_file))
    if expect_root:
        chosen = chosen_snapshot(opened, snapshot[0] if snapshot else None)
        check_root(chosen.name, chosen.root, expect_root)
    description = describe_store(opened, snapshot)
    emit(as_json, description, store_lines(description))


@commands.command()
def verify(
    store: Store,
    snapshot: Annotated[list[str] | None, typer.Option(help="Only these snapshots.")] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="CKPT", help="Also recompute rows through this teacher.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="The teacher's network.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="The teacher's dataset.")] = None,
    sample: Annotated[int, typer.Option(help="How many rows to recompute.")] = 256,
    device: Device = None,
    trust_run: TrustRun = False,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Check every object against the commits.

    With --teacher a sample of rows is recomputed, too.

    Exit code 1 on any breach; each is named with its object and rows.

    \b
    logitstore verify c10.zarr
    logitstore verify c10.zarr --teacher resnet56.th --arch resnet56 --data 'npz:c10.npz?x=x&y=y'
    """
    from logitstore.reading.opening import open_snapshot
    from logitstore.reading.verify import verify_store

    if teacher is not None and data is None:
        raise InputError("--teacher needs --data, the dataset that the store was built from")
    if teacher is not None and sample < 1:
        raise InputError(f"--sample must be at least 1, not {sample}")
    token = read_token(token_file)
    with progress_on_stderr() as progress:
        report = verify_store(store, snapshots=snapshot or (), token=token, progress=progress)
        if teacher is not None and data is not None and report.ok:
            from logitstore.precompute.building.recompute import verify_teacher

            verify_teacher(
                *open_snapshot(store, snapshot[0] if snapshot else None, token),
                report,
                teacher=teacher,
                data=data,
                arch=arch,
                sample=sample,
                device=device,
                trust_run=trust_run,
                progress=progress,
            )
    document = {**vars(report), "ok": report.ok}
    verdict = "whole" if report.ok else f"{len(report.breaches)} breaches"
    recomputed = f", {report.rows_recomputed} rows recomputed" if teacher else ""
    summary = (
        f"{store}: {verdict}; {report.objects} objects, {size(report.bytes)} checked{recomputed}"
    )
    emit(as_json, document, [*report.breaches, summary])
    raise typer.Exit(0 if report.ok else 1)
