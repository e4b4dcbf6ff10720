"""Study trained students: the commands ``sweep``, ``probe``, ``report`` and ``reproduce``.

What is heavy is imported inside the bodies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from logitstore.cli.console import emit, progress_on_stderr
from logitstore.cli.options import (
    ConfigFile,
    Data,
    Device,
    ForwardSize,
    Json,
    Normalization,
    Student,
    TokenFile,
    Trained,
    TrustRun,
    read_token,
)
from logitstore.cli.settings import RunCommand, command_settings
from logitstore.cli.show.training import figure_lines
from logitstore.errors import InputError
from logitstore.text import size

commands = typer.Typer()


@commands.command()
def probe(
    run: Trained,
    data: Data,
    test: Annotated[str, typer.Option(metavar="DATA", help="What the probe is measured on.")],
    student: Student = None,
    classes: Annotated[
        int | None,
        typer.Option(
            help="Number of classes that a checkpoint was trained on; a run knows its own."
        ),
    ] = None,
    normalize: Normalization = None,
    size_: Annotated[
        int | None, typer.Option("--size", help="Side of the image, if not the run's.")
    ] = None,
    batch_size: ForwardSize = 256,
    device: Device = None,
    trust_run: TrustRun = False,
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

    figures = probe_features(
        run,
        data,
        test,
        student=student,
        classes=classes,
        normalize=normalize,
        size=size_,
        batch_size=batch_size,
        device=device,
        trust_run=trust_run,
    )
    emit(as_json, figures, figure_lines(figures))


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
        typer.Option(metavar="DATA", help="Data to measure on, if not the runs' --test or --val."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="STORE|URL", help="A teacher's logits of these data, if not the runs' stores."
        ),
    ] = None,
    snapshot: Annotated[str | None, typer.Option(help="Snapshot of the store.")] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the page, if not the runs' names.")
    ] = None,
    device: Device = None,
    trust_run: TrustRun = False,
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
        page = make(
            runs,
            out,
            data=data,
            store=store,
            snapshot=snapshot,
            title=title,
            token=read_token(token_file),
            device=device,
            trust_run=trust_run,
            progress=progress,
        )
    summary = f"{page.path}: {len(runs)} runs, {size(page.path.stat().st_size)}"
    emit(as_json, {"report": str(page.path), **page.figures}, [summary])


@commands.command()
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|FILE.py]",
            help="Name of a recipe, or its file; without it the recipes are listed.",
        ),
    ] = None,
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the data that the recipe names.")
    ] = Path(),
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder in which the recipe gets a folder.")
    ] = Path("reproduced"),
    scale: Annotated[str, typer.Option(help="small, or paper for the paper's settings.")] = "small",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, if not the recipe's.")] = None,
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
        reproduced = run(scaled, lambda arguments: app(arguments, standalone_mode=False), progress)
    emit(as_json, reproduced.document(), reproduced.lines())


class _SweepCommand(RunCommand):
    without = frozenset({"method", "seed", "expect_root"})
    own_options_first = True


@commands.command(cls=_SweepCommand)
def sweep(
    ctx: typer.Context,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of all runs.")],
    snapshot: Annotated[
        str,
        typer.Option(
            help="Teachers, with commas, one student each: names, patterns such as 'epoch-*', "
            "mean(A,B) and logits(A,B); or all."
        ),
    ] = "all",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, with commas; a hyper-parameter such as --temperature 4 goes to those "
            "that have it."
        ),
    ] = "kd",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas, one student each.")] = "0,1,2",
    baseline: Annotated[
        bool,
        typer.Option("--baseline/--no-baseline", help="Also train students with labels alone."),
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
    settings = command_settings(ctx)
    from logitstore.trainer.config.settings import read_settings
    from logitstore.trainer.studies.sweep import sweep as run
    from logitstore.trainer.studies.sweep_table import sweep_lines

    with progress_on_stderr() as progress:
        table = run(
            settings if config is None else read_settings(config, {**settings, "method": methods}),
            out,
            snapshots=snapshot,
            methods=[name.strip() for name in methods.split(",")],
            seeds=_whole_numbers("seeds", seeds),
            baseline=baseline,
            token=read_token(token_file),
            progress=progress,
        )
    emit(as_json, table.summary(), sweep_lines(table.rows, table.findings))


def _whole_numbers(name: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise InputError(f"--{name} {text!r}: expected whole numbers such as 0,1,2")
    return tuple(int(part) for part in parts)
