"""The commands of studies over runs: ``sweep``, ``probe``, ``report`` and ``reproduce``.

As in ``cli``, heavy imports are inside the bodies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from logitstore.cli.console import emit, progress_on_stderr
from logitstore.cli.options import (
    ConfigFile,
    Data,
    Device,
    Json,
    Normalization,
    TokenFile,
    listed,
    read_token,
)
from logitstore.cli.settings import RunCommand, given_settings
from logitstore.cli.show.training import _bias_lines
from logitstore.text import figure, size

commands = typer.Typer()


@commands.command("correct-bias")
def correct_bias(
    run: Annotated[str, typer.Argument(metavar="RUN|CKPT", help="A training run or a checkpoint.")],
    data: Data,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="Name or number; repeat, or with commas. Default: what the run omitted."
        ),
    ] = None,
    by: Annotated[
        Literal["validation", "prior"],
        typer.Option(
            help="Most accurate on --data, or (without labels) predicting the class as often as "
            "the prior says."
        ),
    ] = "validation",
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|STORE|SHARE,…",
            help="Of --by prior: uniform (the default), a store's label shares, or shares of "
            "--class.",
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="DATA", help="Measured too; nothing is chosen on it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="CKPT.safetensors", help="Write the corrected weights."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(metavar="ARCH", help="A checkpoint's network.")
    ] = None,
    normalize: Normalization = None,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 256,
    device: Device = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Raise the bias of classes that a student never saw.

    After train --omit-class. One shift for all of them by validation, one for each by the prior.

    \b
    logitstore correct-bias runs/without-3 --data npz:val.npz --test npz:test.npz \\
        --out new.safetensors
    logitstore correct-bias runs/without-3 --class 3 --data npz:train.npz --by prior --prior 0.1
    """
    from logitstore.errors import InputError
    from logitstore.trainer.evaluation.bias import correct_bias as run_

    if prior is not None and by != "prior":
        raise InputError("--prior belongs to --by prior: give both, or drop it")
    found = run_(
        run,
        data,
        listed(class_) or (),
        by=by,
        prior=_prior(prior),
        test=test,
        out=out,
        student=student,
        normalize=normalize,
        token=read_token(token_file),
        batch_size=batch_size,
        device=device,
    )
    emit(as_json, found, _bias_lines(found))


def _prior(text: str | None) -> str | list[float]:
    """``uniform``, shares, or else a store's path or URL."""
    try:
        return [float(part) for part in (text or "").split(",")]
    except ValueError:
        return text or "uniform"


@commands.command()
def probe(
    run: Annotated[str, typer.Argument(metavar="RUN|CKPT", help="A training run or a checkpoint.")],
    data: Data,
    test: Annotated[str, typer.Option(metavar="DATA", help="What the probe is measured on.")],
    student: Annotated[
        str | None, typer.Option(metavar="ARCH", help="A checkpoint's network.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="How many it was trained on; a run knows.")
    ] = None,
    normalize: Normalization = None,
    size_: Annotated[
        int | None, typer.Option("--size", help="Side of the image; default: the run's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 256,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a student's features on other data.

    A linear probe: a logistic regression on what the last Linear layer is given, trained on --data
    and measured on --test, which may be of any classes. The student stays as it is.

    \b
    logitstore probe runs/kd --size 32 --data torchvision:STL10?split=train \\
        --test torchvision:STL10?split=test
    """
    from logitstore.trainer.evaluation.probe import probe_features

    found = probe_features(
        run,
        data,
        test,
        student=student,
        classes=classes,
        normalize=normalize,
        size=size_,
        batch_size=batch_size,
        device=device,
    )
    emit(as_json, found, [f"{key:18} {figure(value)}" for key, value in found.items()])


@commands.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Training runs, finished or not.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The page to write, or to write anew.")
    ] = Path("report.html"),
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="What is measured; default: the runs' --test, or --val."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="STORE|URL", help="A teacher's logits of these data; default: the runs' stores."
        ),
    ] = None,
    snapshot: Annotated[str | None, typer.Option(help="Which snapshot of the store.")] = None,
    title: Annotated[
        str | None, typer.Option(help="Of the page; default: the runs' names.")
    ] = None,
    device: Device = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Put runs side by side on one HTML page.

    Settings, figures, learning curves, reliability, risk and coverage, accuracy of each class,
    correlation difference to the teacher, t-SNE. One file, without scripts; --json prints the
    figures of its tables.

    \b
    logitstore report runs/ce runs/kd --out report.html
    logitstore report runs/* --data digits?train=false --store test.zarr --snapshot teacher
    """
    from logitstore.trainer import report as make

    with progress_on_stderr() as progress:
        made = make(
            runs,
            out,
            data=data,
            store=store,
            snapshot=snapshot,
            title=title,
            token=read_token(token_file),
            device=device,
            progress=progress,
        )
    written = f"{made.path}: {len(runs)} runs, {size(made.path.stat().st_size)}"
    emit(as_json, {"report": str(made.path), **made.figures}, [written])


@commands.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE.py]", help="Which; default: list them.")
    ] = None,
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of the data that the recipe names.")
    ] = Path(),
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A folder in it is made for the recipe.")
    ] = Path("reproduced"),
    scale: Annotated[str, typer.Option(help="small, or paper: the full settings.")] = "small",
    seeds: Annotated[int | None, typer.Option(help="How many; default: the recipe's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands only.")] = False,
    as_json: Json = False,
) -> None:
    """Repeat an experiment of a paper.

    Runs the recipe's commands and prints our table beside the paper's. Without a name it lists the
    recipes. Running the same command again resumes.

    \b
    logitstore reproduce
    logitstore reproduce zhao-dkd --root data --dry-run
    logitstore reproduce zhao-dkd --root data --out reproduced --seeds 5
    """
    from logitstore.cli.app import app
    from logitstore.trainer.studies.recipe_table import recipe_lines
    from logitstore.trainer.studies.reproduce import list_recipes, set_up
    from logitstore.trainer.studies.reproduce import reproduce as run

    if name is None:
        recipes = list_recipes()
        emit(as_json, recipes, recipe_lines(recipes))
        return
    scaled = set_up(name, root=root, out=out, scale=scale, seeds=seeds)
    if dry_run:
        spelled = [str(command) for command in scaled.commands()]
        emit(as_json, {"commands": spelled}, spelled)
        return
    with progress_on_stderr() as progress:
        made = run(scaled, lambda arguments: app(arguments, standalone_mode=False), progress)
    emit(as_json, made.document(), made.lines())


class _SweepCommand(RunCommand):
    without = frozenset({"method", "seed", "expect_root"})
    own_options_first = True


@commands.command(cls=_SweepCommand)
def sweep(
    ctx: typer.Context,
    out: Annotated[str, typer.Option(metavar="DIR", help="The folder of all runs.")],
    snapshot: Annotated[
        str,
        typer.Option(
            help="Who teaches, one student each: names, patterns such as 'epoch-*', mean(A,B) and "
            "logits(A,B), with commas; or all."
        ),
    ] = "all",
    methods: Annotated[
        str,
        typer.Option(
            help="With commas; a hyper-parameter (--temperature 4 …) goes to those that have it."
        ),
    ] = "kd",
    seeds: Annotated[str, typer.Option(help="One student each, with commas.")] = "0,1,2",
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Also train with labels alone.")
    ] = True,
    config: ConfigFile = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Ask which epoch of a teacher teaches best.

    One student for each snapshot, method and seed, each a run of its own in DIR; beside it a plain
    one for each seed. They are compared on --val. Running the same command again resumes, and
    trains no student twice. A --config's hyper-parameters count if its method is the only one.

    \b
    logitstore sweep --data digits?train=true --val digits?train=false --student mlp?hidden=16 \\
        --store epochs.zarr --snapshot 'epoch-*' --methods kd,dkd --seeds 0,1,2 --out runs/sweep
    logitstore sweep --config runs/kd/config.toml --snapshot 'all,mean(epoch-0005,epoch-0030)' \\
        --out runs/sweep
    """
    given = given_settings(ctx)
    from logitstore.trainer.config.settings import read_settings
    from logitstore.trainer.studies.sweep import sweep as run
    from logitstore.trainer.studies.sweep_table import sweep_lines

    with progress_on_stderr() as progress:
        found = run(
            given if config is None else read_settings(config, {**given, "method": methods}),
            out,
            snapshots=snapshot,
            methods=[name.strip() for name in methods.split(",")],
            seeds=_whole_numbers("seeds", seeds),
            baseline=baseline,
            token=read_token(token_file),
            progress=progress,
        )
    emit(as_json, found.summary(), sweep_lines(found.rows, found.findings))


def _whole_numbers(name: str, text: str) -> tuple[int, ...]:
    from logitstore.errors import InputError

    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise InputError(f"--{name} {text!r}: expected whole numbers such as 0,1,2")
    return tuple(int(part) for part in parts)
