"""Store teachers' logits, or say what that will cost: the commands ``build`` and ``plan``."""

from __future__ import annotations

from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitstore.cli.console import emit, progress_on_stderr
from logitstore.cli.options import Json
from logitstore.cli.settings import BuildCommand, command_settings
from logitstore.errors import InputError

if TYPE_CHECKING:
    from logitstore.precompute.building.config import BuildConfig

commands = typer.Typer()


class _PlanCommand(BuildCommand):
    without = frozenset({"fresh"})


@commands.command(cls=BuildCommand)
def build(
    ctx: typer.Context,
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
    config = _build_config(command_settings(ctx))
    if dry_run:
        _print_estimate(config, 30, as_json)
        return
    from logitstore.cli.show.builds import print_built
    from logitstore.precompute.building.run import build as run

    with progress_on_stderr() as progress:
        snapshots = run(config, progress)
    print_built(config.out, [snapshot.name for snapshot in snapshots], as_json, config.request)


@commands.command(cls=_PlanCommand)
def plan(
    ctx: typer.Context,
    epochs: Annotated[
        int, typer.Option(help="Epochs of a student that would otherwise run its teacher live.")
    ] = 30,
    as_json: Json = False,
) -> None:
    """Say what a build would cost.

    The teachers run on 512 rows. Bytes, seconds and after how many students the build has paid for
    itself, against running the teacher beside each of them. With --out it is also checked that this
    store may be built.

    \b
    logitstore plan --teacher resnet56.th --arch resnet56 --normalize imagenet \\
        --data 'npz:cifar10.npz?x=x_train&y=y_train' --view-spec cifar-train --views 8 --epochs 60
    """
    with TemporaryDirectory() as folder:
        _print_estimate(_build_config({"out": folder, **command_settings(ctx)}), epochs, as_json)


def _build_config(settings: dict[str, Any]) -> BuildConfig:
    from logitstore.precompute.building.config import BuildConfig

    for name, flag in (("teachers", "teacher"), ("data", "data"), ("out", "out")):
        if name not in settings:
            raise InputError(f"--{flag} is missing: give it")
    return BuildConfig(**settings)


def _print_estimate(config: BuildConfig, epochs: int, as_json: bool) -> None:
    from logitstore.cli.show.builds import estimate_lines
    from logitstore.precompute.building.trial import estimate

    with progress_on_stderr() as progress:
        cost = estimate(config, epochs=epochs, progress=progress)
    emit(as_json, asdict(cost), estimate_lines(cost))
