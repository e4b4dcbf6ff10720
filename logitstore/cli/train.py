"""Train and measure one student: the commands ``train``, ``evaluate`` and ``methods``.

What is heavy is imported inside the bodies; settings are checked before torch is loaded.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitstore.cli.console import emit, progress_on_stderr
from logitstore.cli.options import (
    ClassMap,
    ConfigFile,
    Data,
    Device,
    ForwardSize,
    Json,
    MatchBy,
    Normalization,
    Student,
    TokenFile,
    Trained,
    TrustRun,
    read_token,
)
from logitstore.cli.settings import RunCommand, command_settings
from logitstore.cli.show.training import figure_lines, method_lines

if TYPE_CHECKING:
    from logitstore.trainer.config.settings import TrainConfig

commands = typer.Typer()


@commands.command(cls=RunCommand)
def train(
    ctx: typer.Context,
    config: ConfigFile = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Train a student from a store, or plainly.

    The store is local or served; with one the method is kd, if no other is named, else ce.

    Running the same command again resumes; the result is the same, bit for bit.

    \b
    logitstore train --data digits --student mlp?hidden=32 --method ce --out runs/ce
    logitstore train --data digits --student mlp?hidden=32 --store http://host:8000/digits \\
        --snapshot epoch-0005 --method kd --temperature 4 --epochs 60 --out runs/kd
    logitstore train --config runs/kd/config.toml --method dkd --beta 2 --out runs/dkd
    """
    with _one_report():
        settings, token = train_config(config, command_settings(ctx)), read_token(token_file)
        from logitstore.precompute.processes.launch import this_rank
        from logitstore.trainer import train as run

        with progress_on_stderr() as progress:
            result = run(settings, token=token, progress=progress)
    if this_rank().first:
        summary = result.summary()
        emit(as_json, summary, figure_lines(summary))


@commands.command()
def evaluate(
    run: Trained,
    data: Data,
    val: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data on which one temperature is fitted; calibration is then given with it too.",
        ),
    ] = None,
    student: Student = None,
    normalize: Normalization = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE|URL", help="A teacher's logits to compare with: the KD error."),
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(help="Snapshot of the store, or an ensemble as train takes it.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the KD error; without it 1.")
    ] = None,
    match_by: MatchBy = "index",
    class_map: ClassMap = None,
    batch_size: ForwardSize = 256,
    device: Device = None,
    trust_run: TrustRun = False,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Measure a trained network.

    Accuracy, NLL, calibration and risk-coverage; with a store its distance from the teacher.
    A run's last weights are measured; RUN/best.safetensors are those of its best epoch.

    \b
    logitstore evaluate runs/kd --data digits?train=false --val split:0.1
    logitstore evaluate runs/kd/best.safetensors --data digits?train=false
    logitstore evaluate resnet20.th --student resnet20 --normalize imagenet --data imagefolder:val
    """
    from logitstore.trainer import evaluate as measure

    figures = measure(
        run,
        data,
        val=val,
        student=student,
        normalize=normalize,
        store=store,
        snapshot=snapshot,
        temperature=temperature,
        token=read_token(token_file),
        match_by=match_by,
        class_map=class_map,
        batch_size=batch_size,
        device=device,
        trust_run=trust_run,
    )
    emit(as_json, figures, figure_lines(figures))


@commands.command()
def methods(
    method: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="Only this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods and their hyper-parameters.

    Every hyper-parameter is an option of train: kd_weight 0.9 is --kd-weight 0.9.

    \b
    logitstore methods
    logitstore methods dkd --json
    """
    from logitstore.trainer.methods.table import describe_methods

    entries = describe_methods(method)
    emit(as_json, entries, method_lines(entries))


def train_config(file: Path | None, settings: dict[str, Any]) -> TrainConfig:
    """Return the settings of a run: those of the command line win over the file's."""
    from logitstore.trainer.config.settings import TrainConfig, refuse_missing

    if file is not None:
        return TrainConfig.from_toml(file, settings)
    refuse_missing(settings)
    return TrainConfig(**settings)


def _one_report() -> AbstractContextManager[None]:
    """Let only the first failing rank of several report; a single process needs no torch here."""
    if "RANK" not in os.environ:
        return nullcontext()
    from logitstore.precompute.processes.launch import first_error_only

    return first_error_only()
