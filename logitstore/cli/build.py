"""The command line: one library call per command.

This file is the composition root: it alone imports ``api`` and ``trainer``, inside command bodies,
where the heavy imports are too (``logitstore --help`` takes 0.2 s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitstore.cli.console import emit, progress_on_stderr
from logitstore.cli.options import (
    AtTemperature,
    Data,
    Device,
    Encoding,
    Fresh,
    Json,
    MaxKl,
    Normalization,
    Precision,
    with_options_of,
)

if TYPE_CHECKING:
    from logitstore.precompute.building.config import BuildConfig

commands = typer.Typer()


@commands.command()
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
    from logitstore.cli.show.builds import print_built
    from logitstore.precompute.building.run import build as run

    with progress_on_stderr() as progress:
        built = run(config, progress)
    print_built(out, [entry.name for entry in built], as_json, config.request)


@commands.command()
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


def _build_config(
    teacher: list[str],
    more: list[str] | None,
    arch: list[str] | None,
    snapshot: list[str] | None,
    **same: Any,
) -> BuildConfig:
    """The options of ``build``, all but its flags, as the library takes them."""
    from logitstore.precompute.building.config import BuildConfig

    return BuildConfig(
        teachers=[*teacher, *(more or ())], arch=arch or (), snapshots=snapshot or (), **same
    )


def _print_estimate(config: BuildConfig, epochs: int, as_json: bool) -> None:
    from dataclasses import asdict

    from logitstore.cli.show.builds import estimate_lines
    from logitstore.precompute.building.trial import estimate

    with progress_on_stderr() as progress:
        found = estimate(config, epochs=epochs, progress=progress)
    emit(as_json, asdict(found), estimate_lines(found))
