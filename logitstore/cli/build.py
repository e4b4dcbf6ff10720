"""The commands ``build`` and ``plan``: a teacher's logits, and what they will cost."""

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
)

if TYPE_CHECKING:
    from logitstore.precompute.building.config import BuildConfig

commands = typer.Typer()

Teachers = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        metavar="CKPT|GLOB|RUN",
        help="Checkpoint, folder, glob or training run; repeat for several teachers.",
    ),
]

More = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CKPT]...", help="More checkpoints, as a shell's * gives them."),
]

Arch = Annotated[
    list[str] | None,
    typer.Option(
        help="Network of the teachers: torchvision:NAME, timm:NAME, module:factory, "
        "file.py:factory, resnet20 to resnet110, cnn5, mlp?hidden=256,256. One for all teachers, "
        "or repeat, one for each. A training run knows its own.",
    ),
]

Snapshots = Annotated[
    list[str] | None,
    typer.Option(
        "--snapshot",
        help="Name of the snapshot; repeat, one for each teacher. Without it the checkpoint's name "
        "without its ending.",
    ),
]

ViewSpec = Annotated[
    str,
    typer.Option(
        metavar="PRESET|FILE",
        help="How views are made of a sample: eval, cifar-train, cifar-strong, cifar-autoaugment, "
        "imagenet-train, imagenet-eval or FILE.json.",
    ),
]

Size = Annotated[
    int | None,
    typer.Option(help="Side of the view, if not the preset's or the image's own."),
]

Views = Annotated[int, typer.Option(help="Number of views of each sample.")]

FirstView = Annotated[
    int, typer.Option(help="Number of the first view, to add views to those of another snapshot.")
]

Mix = Annotated[
    str | None,
    typer.Option(
        metavar="MIX", help="Mix pairs of images: mixup:ALPHA, cutmix:ALPHA, or both with a comma."
    ),
]

Seed = Annotated[int, typer.Option(help="Seed of the views.")]

BatchSize = Annotated[int, typer.Option(help="Images in one forward pass.")]

Workers = Annotated[
    int | None,
    typer.Option(help="Processes that read images; without it none for data that are in memory."),
]

ForwardPrecision = Annotated[Precision, typer.Option(help="Arithmetic of the forward pass.")]

WeightsKey = Annotated[
    str | None, typer.Option(help="Entry of the checkpoint to use, such as model_ema.")
]

ShardRows = Annotated[
    int | None,
    typer.Option(help="Rows of a shard, a power of two: what an interruption loses at most."),
]


@commands.command()
def build(
    teacher: Teachers,
    data: Data,
    out: Annotated[str, typer.Option(metavar="STORE", help="Store to make, resume or add to.")],
    more: More = None,
    arch: Arch = None,
    snapshot: Snapshots = None,
    normalize: Normalization = None,
    view_spec: ViewSpec = "eval",
    size: Size = None,
    views: Views = 1,
    first_view: FirstView = 0,
    mix: Mix = None,
    seed: Seed = 0,
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
    batch_size: BatchSize = 256,
    workers: Workers = None,
    device: Device = None,
    precision: ForwardPrecision = "fp32",
    weights_key: WeightsKey = None,
    shard_rows: ShardRows = None,
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
    options = dict(locals())
    del options["dry_run"], options["as_json"]
    config = _build_config(**options)
    if dry_run:
        _print_estimate(config, 30, as_json)
        return
    from logitstore.cli.show.builds import print_built
    from logitstore.precompute.building.run import build as run

    with progress_on_stderr() as progress:
        built = run(config, progress)
    print_built(out, [entry.name for entry in built], as_json, config.request)


@commands.command()
def plan(
    teacher: Teachers,
    data: Data,
    out: Annotated[
        str | None, typer.Option(metavar="STORE", help="Also check that this store may be built.")
    ] = None,
    more: More = None,
    arch: Arch = None,
    snapshot: Snapshots = None,
    normalize: Normalization = None,
    view_spec: ViewSpec = "eval",
    size: Size = None,
    views: Views = 1,
    first_view: FirstView = 0,
    mix: Mix = None,
    seed: Seed = 0,
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
    batch_size: BatchSize = 256,
    workers: Workers = None,
    device: Device = None,
    precision: ForwardPrecision = "fp32",
    weights_key: WeightsKey = None,
    shard_rows: ShardRows = None,
    epochs: Annotated[
        int, typer.Option(help="Epochs of a student that would otherwise run its teacher live.")
    ] = 30,
    as_json: Json = False,
) -> None:
    """Say what a build would cost.

    The teachers run on 512 rows. Bytes, seconds and after how many students the build has paid for
    itself, against running the teacher beside each of them.

    \b
    logitstore plan --teacher resnet56.th --arch resnet56 --normalize imagenet \\
        --data 'npz:cifar10.npz?x=x_train&y=y_train' --view-spec cifar-train --views 8 --epochs 60
    """
    options = dict(locals())
    del options["epochs"], options["as_json"]
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as nowhere:
        config = _build_config(**{**options, "out": out or nowhere})
        _print_estimate(config, epochs, as_json)


def _build_config(
    teacher: list[str],
    more: list[str] | None,
    arch: list[str] | None,
    snapshot: list[str] | None,
    **same: Any,
) -> BuildConfig:
    """Return the options of ``build``, all but its switches, as the library takes them."""
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
