"""The command line: one library call per command.

This file is the composition root: it alone imports ``api`` and ``trainer``, inside command bodies,
where the heavy imports are too (``logitstore --help`` takes 0.2 s).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitstore import __version__, cli_classes, cli_studies, cli_train
from logitstore.console import Commands, emit, shown_progress, size
from logitstore.options import (
    AtTemperature,
    CacheDir,
    Data,
    Device,
    Encoding,
    Fresh,
    Json,
    MaxKl,
    Normalization,
    Precision,
    Store,
    TokenFile,
    read_token,
    with_options_of,
)

if TYPE_CHECKING:
    from logitstore.precompute.prepare import BuildConfig

app = typer.Typer(
    cls=Commands,
    name="logitstore",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Knowledge distillation without a teacher in the room.

    Teachers run once and their logits are kept in verified stores; a server hands them to trainers;
    students train at the cost of plain cross-entropy.

    Exit codes: 0 done, 1 a check failed, 2 wrong usage or input, 3 unfinished (run the same command
    again), 130 interrupted (the same command goes on).""",
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"logitstore {__version__}")
        raise typer.Exit


@app.command()
def build(
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="CKPT|GLOB|RUN", help="Checkpoint, folder, glob or training run; repeat."
        ),
    ],
    data: Data,
    out: Annotated[str, typer.Option(metavar="STORE", help="The store to make, resume or add to.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CKPT]...", help="More checkpoints, as a shell's * gives."),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="torchvision:NAME, timm:NAME, module:factory, file.py:factory, resnet20 to "
            "resnet110, cnn5, mlp?hidden=256,256; one for all teachers or one for each; a run "
            "knows its own."
        ),
    ] = None,
    snapshot: Annotated[
        list[str] | None, typer.Option(help="Snapshot names; default: the checkpoints' stems.")
    ] = None,
    normalize: Normalization = None,
    view_spec: Annotated[
        str,
        typer.Option(
            metavar="PRESET|FILE",
            help="eval, cifar-train, cifar-strong, cifar-autoaugment, imagenet-train, "
            "imagenet-eval or FILE.json.",
        ),
    ] = "eval",
    size: Annotated[
        int | None, typer.Option(help="Side of the view; default: the preset's, else as it comes.")
    ] = None,
    views: Annotated[int, typer.Option(help="Views of each sample.")] = 1,
    first_view: Annotated[
        int, typer.Option(help="Number of the first one: to add views beside a snapshot's.")
    ] = 0,
    mix: Annotated[
        str | None,
        typer.Option(metavar="MIX", help="mixup:ALPHA, cutmix:ALPHA or both, with a comma."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the views.")] = 0,
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    device: Device = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the forward pass.")] = "fp32",
    weights_key: Annotated[
        str | None, typer.Option(help="Entry of the checkpoint to use, such as model_ema.")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Rows of a shard: what an interruption can lose at most.")
    ] = None,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the cost, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run teachers over data once and write a store.

    Running the same command again resumes; a finished store has the same bytes however often it was
    interrupted.

    \b
    logitstore build --teacher resnet56.th --arch resnet56 --normalize imagenet \\
        --data 'npz:cifar10.npz?x=x_train&y=y_train' --out c10.zarr
    logitstore build --teacher runs/teacher --data digits --out digits.zarr
    """
    values = dict(locals())
    del values["dry_run"], values["as_json"]
    config = _build_config(**values)
    if dry_run:
        _print_estimate(config, 30, as_json)
        return
    from logitstore.outcome import print_built
    from logitstore.precompute.build import build as run

    with shown_progress() as progress:
        built = run(config, progress)
    print_built(out, [entry.name for entry in built], as_json, config.wish)


@app.command()
@with_options_of(build, without=("fresh", "dry_run"))
def plan(
    out: Annotated[
        str | None, typer.Option(metavar="STORE", help="Also check that this store may be built.")
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Of a student, to compare with its teacher run live.")
    ] = 30,
    **options: Any,
) -> None:
    """Say what a build would cost.

    The teachers run on 512 rows. Bytes, seconds and after how many students the build has paid for
    itself, against running the teacher beside each of them.

    \b
    logitstore plan --teacher resnet56.th --arch resnet56 --normalize imagenet \\
        --data 'npz:cifar10.npz?x=x_train&y=y_train' --view-spec cifar-train --views 8 --epochs 60
    """
    from tempfile import TemporaryDirectory

    as_json = options.pop("as_json")
    with TemporaryDirectory() as nowhere:
        _print_estimate(_build_config(out=out or nowhere, **options), epochs, as_json)


@app.command("import")
def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help=".npy, .npz[?key=] or .safetensors[?key=].")
    ],
    labels: Annotated[str, typer.Option(metavar="FILE", help="Labels (N,), -1 where unknown.")],
    out: Annotated[str, typer.Option(metavar="STORE", help="The store to make or add to.")],
    snapshot: Annotated[str, typer.Option(help="The snapshot's name.")],
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Make a snapshot of logits from elsewhere.

    The logits are (N, C) or (V, N, C); nothing binds them to images.

    \b
    logitstore import logits.npy --labels labels.npy --out c10.zarr --snapshot elsewhere
    """
    from logitstore.choice import EncodingWish
    from logitstore.exchange import import_logits
    from logitstore.outcome import print_built

    wish = EncodingWish(text=encoding, max_kl=max_kl, at_temperature=at_temperature)
    with shown_progress() as progress:
        import_logits(file, labels, out, snapshot, wish=wish, fresh=fresh, progress=progress)
    print_built(out, [snapshot], as_json, wish)


@app.command()
def discard(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store's path.")],
    snapshot: Annotated[str, typer.Option(help="Whose unfinished build.")],
) -> None:
    """Delete an unfinished build; snapshots stay.

    \b
    logitstore discard c10.zarr --snapshot resnet56
    """
    from logitstore.resume import abandon

    abandon(store, snapshot)
    typer.echo(f"{store}: the unfinished build of {snapshot} is gone")


@app.command()
def transcode(
    store: Store,
    out: Annotated[str, typer.Option(metavar="STORE", help="The store to make or add to.")],
    snapshot: Annotated[
        str | None, typer.Option(help="Which snapshot, if there are several.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name there; default: the same.")] = None,
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
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
    from logitstore.choice import EncodingWish
    from logitstore.opening import chosen_snapshot, open_store
    from logitstore.outcome import print_built
    from logitstore.transcode import transcode as run

    wish = EncodingWish(text=encoding, max_kl=max_kl, at_temperature=at_temperature)
    opened = open_store(store, read_token(token_file))
    if snapshot is None and name is not None:
        # Repeated into the same store, the command finds its own snapshot beside the other one.
        others = [other for other in opened.snapshots if other != name]
        snapshot = others[0] if len(others) == 1 else None
    source = chosen_snapshot(opened, snapshot)
    with shown_progress() as progress:
        run(opened, source, out, wish, name=name, fresh=fresh, progress=progress)
    print_built(out, [name or source.name], as_json, wish)


@app.command()
def export(
    store: Store,
    out: Annotated[str, typer.Option(metavar="FILE", help=".npy, .npz or .safetensors.")],
    snapshot: Annotated[
        str | None, typer.Option(help="Which snapshot, if there are several.")
    ] = None,
    token_file: TokenFile = None,
) -> None:
    """Write a snapshot's logits to one file.

    They are decoded to float32, (N, C) or (V, N, C).

    \b
    logitstore export c10.zarr --snapshot resnet56 --out logits.npy
    """
    from logitstore.exchange import export_logits
    from logitstore.opening import chosen_snapshot, open_store

    opened = open_store(store, read_token(token_file))
    with shown_progress() as progress:
        shape = export_logits(opened, chosen_snapshot(opened, snapshot), out, progress)
    typer.echo(f"{out}: float32 {shape}")


@app.command("ls")
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
    from logitstore.describe import list_location, listing_lines

    rows = list_location(location, read_token(token_file))
    emit(as_json, rows, listing_lines(rows))


@app.command()
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
    from logitstore.describe import describe_store, store_lines
    from logitstore.opening import chosen_snapshot, open_store
    from logitstore.opening import expect_root as check_root

    opened = open_store(store, read_token(token_file))
    if expect_root:
        check_root(chosen_snapshot(opened, snapshot[0] if snapshot else None), expect_root)
    found = describe_store(opened, snapshot)
    emit(as_json, found, store_lines(found))


@app.command()
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
    from logitstore.verify import verify_store

    if teacher is not None:
        _check_recompute(data, sample)
    token = read_token(token_file)
    with shown_progress() as progress:
        report = verify_store(store, snapshots=snapshot or (), token=token, progress=progress)
        if teacher is not None and report.ok:
            _recompute(
                report, store, snapshot, teacher, arch, data, sample, device, token, progress
            )
    found = {**vars(report), "ok": report.ok}
    said = "whole" if report.ok else f"{len(report.breaches)} breaches"
    recomputed = f", {report.rows_recomputed} rows recomputed" if teacher else ""
    summary = f"{store}: {said}; {report.objects} objects, {size(report.bytes)} checked{recomputed}"
    emit(as_json, found, [*report.breaches, summary])
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def serve(
    root: Annotated[Path, typer.Argument(help="A store, or a folder of stores.")],
    host: Annotated[
        str, typer.Option(help="Address; any but loopback needs tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
    workers: Annotated[int, typer.Option(help="Server processes.")] = 1,
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
    from api.app import serve as run
    from api.settings import Settings

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


app.add_typer(cli_train.commands)
app.add_typer(cli_classes.commands)
app.add_typer(cli_studies.commands)


cache_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Decoded copies of snapshots on this disk.

    They are made when a snapshot is first read, shared by all processes, and removed, least
    recently used first, when together they would exceed LOGITSTORE_CACHE_BYTES (64 GiB).""",
)
app.add_typer(cache_app, name="cache")


@cache_app.command("ls")
def cache_ls(cache: CacheDir = None, as_json: Json = False) -> None:
    """List the copies, the least recently used one first.

    \b
    logitstore cache ls
    """
    from dataclasses import asdict

    from logitstore.cache import Cache
    from logitstore.outcome import copy_lines

    found = Cache.default(cache)
    entries = found.entries()
    document = {
        "folder": str(found.folder),
        "most_bytes": found.most_bytes,
        "copies": [asdict(entry) for entry in entries],
    }
    emit(as_json, document, copy_lines(str(found.folder), found.most_bytes, entries))


@cache_app.command("clear")
def cache_clear(cache: CacheDir = None, as_json: Json = False) -> None:
    """Remove all copies that are not in use.

    \b
    logitstore cache clear
    """
    from dataclasses import asdict

    from logitstore.cache import Cache

    found = Cache.default(cache)
    removed, kept = found.clear()
    freed = size(sum(entry.bytes for entry in removed))
    lines = [f"{found.folder}: removed {len(removed)} copies, {freed}"]
    lines += [f"in use and kept: {e.snapshot} of {e.store}, {size(e.bytes)}" for e in kept]
    document = {
        "folder": str(found.folder),
        "removed": [asdict(entry) for entry in removed],
        "kept": [asdict(entry) for entry in kept],
    }
    emit(as_json, document, lines)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the demo keeps its files.")
    ] = Path("demo"),
    seeds: Annotated[int, typer.Option(help="Students for each line of the table.")] = 5,
) -> None:
    """Show the whole way on bundled digits.

    Teachers, a store, a server and students, with the commands above.

    \b
    logitstore demo
    """
    from logitstore.demo import run_demo

    run_demo(lambda arguments: app(arguments, standalone_mode=False), out, seeds=seeds)


def _build_config(
    teacher: list[str],
    more: list[str] | None,
    arch: list[str] | None,
    snapshot: list[str] | None,
    **same: Any,
) -> BuildConfig:
    """The options of ``build``, all but its flags, as the library takes them."""
    from logitstore.precompute.prepare import BuildConfig

    return BuildConfig(
        teachers=[*teacher, *(more or ())], arch=arch or (), snapshots=snapshot or (), **same
    )


def _print_estimate(config: BuildConfig, epochs: int, as_json: bool) -> None:
    from dataclasses import asdict

    from logitstore.plan import estimate_lines
    from logitstore.precompute.trial import estimate

    with shown_progress() as progress:
        found = estimate(config, epochs=epochs, progress=progress)
    emit(as_json, asdict(found), estimate_lines(found))


def _check_recompute(data: str | None, sample: int) -> None:
    from logitstore.errors import InputError

    if data is None:
        raise InputError("--teacher needs --data, the dataset that the store was built from")
    if sample < 1:
        raise InputError(f"--sample must be at least 1, not {sample}")


def _recompute(
    report: Any,
    location: str,
    snapshots: list[str] | None,
    teacher: str,
    arch: str | None,
    data: str | None,
    sample: int,
    device: str | None,
    token: str | None,
    progress: Any,
) -> None:
    from logitstore.opening import chosen_snapshot, open_store
    from logitstore.precompute.verify import verify_teacher

    assert data is not None  # _check_recompute
    store = open_store(location, token)
    verify_teacher(
        store,
        chosen_snapshot(store, snapshots[0] if snapshots else None),
        report,
        teacher=teacher,
        data=data,
        arch=arch,
        sample=sample,
        device=device,
        progress=progress,
    )


def main() -> None:
    """Entry point of the console script."""
    app()
