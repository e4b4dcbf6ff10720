"""The commands that train and measure one student: ``train``, ``evaluate`` and ``methods``.

As in ``cli``, heavy imports are inside the bodies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from logitstore.cli.console import emit, shown_progress
from logitstore.cli.options import (
    CacheDir,
    ClassMap,
    Data,
    Device,
    Json,
    MatchBy,
    Normalization,
    TokenFile,
    listed,
    read_token,
)
from logitstore.text import figure

commands = typer.Typer()


HYPER_PARAMETERS_TOO = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Context settings of a command that takes every method's hyper-parameters as options."""


@commands.command(context_settings=HYPER_PARAMETERS_TOO)
def train(
    ctx: typer.Context,
    out: Annotated[str | None, typer.Option(metavar="RUN", help="The run's folder.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Training data; see build.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(metavar="ARCH", help="The network; see build.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="STORE|URL", help="Teacher's logits.")
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(
            help="Who teaches: NAME; A+B (B's views follow A's); mean(A,B*2) of distributions or "
            "logits(A,B) of logits, members also STORE::NAME; or in turn: A,B@11,logits(A,B)@31, "
            "each from its epoch on."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="ce (the default), kd, dkd, ps-kd, …: `logitstore methods`. Its hyper-parameters "
            "are options too: --temperature 4 --ce-weight 0.1 --kd-weight 0.9 --standardize "
            "--stop-kd-at 30 --beta 8 …"
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Default 30.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default 128.")] = None,
    seed: Annotated[int | None, typer.Option(help="Initial weights and order; default 0.")] = None,
    val: Annotated[
        str | None,
        typer.Option(
            metavar="DATA|split:SHARE",
            help="Measured after each epoch, chooses the best; split:0.1 holds a tenth of the "
            "training samples out. Default: none, or split:0.1 with --test.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Measured once, at the end: last and best epoch; chooses nothing."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Train on this many samples of the data.")
    ] = None,
    limit_seed: Annotated[
        int | None, typer.Option(help="Which ones, and which are held out; default 0.")
    ] = None,
    omit_class: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS,…", help="Names or numbers of classes that are not trained on; repeat."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|CKPT", help="Begin with these weights; the last layer's shape may differ."
        ),
    ] = None,
    specialist: Annotated[
        str | None,
        typer.Option(
            metavar="PLAN.json:NAME", help="Be this specialist of `specialists plan`'s file."
        ),
    ] = None,
    label_noise: Annotated[
        float | None, typer.Option(help="Give this share of the labels wrong values.")
    ] = None,
    label_noise_seed: Annotated[int | None, typer.Option(help="Which ones; default 0.")] = None,
    teach: Annotated[
        str | None,
        typer.Option(
            metavar="all|confident|unsure",
            help="Samples on which the teacher's term counts: all (the default), or the half of "
            "whose label it is more, or less, sure.",
        ),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Default 0.05 for sgd, 0.001 for adamw.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Default 0.9.")] = None,
    nesterov: Annotated[bool | None, typer.Option("--nesterov/--no-nesterov")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default 5e-4.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, step or cosine (default).")
    ] = None,
    milestones: Annotated[str | None, typer.Option(help="Epochs of the steps: 60,120,160.")] = None,
    lr_decay: Annotated[float | None, typer.Option(help="Factor of a step; default 0.1.")] = None,
    warmup_epochs: Annotated[int | None, typer.Option(help="Epochs of linear warm-up.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, or bf16 or fp16 on a GPU.")] = None,
    normalize: Normalization = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|FILE",
            help="Views of the student's own, new in each epoch; default: the store's.",
        ),
    ] = None,
    size_: Annotated[
        int | None, typer.Option("--size", help="Side of the image; default: the store's.")
    ] = None,
    snapshots: Annotated[
        str | None, typer.Option(help="Keep weights: every-epoch, or epochs such as 1,5,60.")
    ] = None,
    record_logits: Annotated[
        bool | None,
        typer.Option(
            "--record-logits", help="Keep each epoch's own logits, as snapshots of OUT/self.zarr."
        ),
    ] = None,
    expect_root: Annotated[
        str | None, typer.Option(help="Refuse any other root than this.")
    ] = None,
    match_by: MatchBy = None,
    class_map: ClassMap = None,
    allow_unbound: Annotated[
        bool | None, typer.Option("--allow-unbound", help="Accept imported logits.")
    ] = None,
    allow_mismatch: Annotated[
        bool | None,
        typer.Option("--allow-mismatch", help="Accept images that the teacher did not see."),
    ] = None,
    device: Device = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of the GPU: 2GiB; trains in parts that fit.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Images at once, if not the whole batch.")
    ] = None,
    recompute: Annotated[
        bool | None, typer.Option("--recompute", help="Less memory, more time: run blocks twice.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    patience: Annotated[
        float | None, typer.Option(help="Seconds that a server may stay away; default 600.")
    ] = None,
    read: Annotated[
        str | None,
        typer.Option(
            metavar="auto|materialise|stream|direct",
            help="Rows from a copy decoded once (the default, if it fits), from the server batch "
            "by batch, or by whole shards.",
        ),
    ] = None,
    cache: CacheDir = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with these settings; flags go before.")
    ] = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Train a student from a store, or plainly.

    The store is local or served; --method ce needs none.

    Running the same command again resumes; the result is the same, bit for bit.

    \b
    logitstore train --data digits --student mlp?hidden=32 --method ce --out runs/ce
    logitstore train --data digits --student mlp?hidden=32 --store http://host:8000/digits \\
        --snapshot epoch-0005 --method kd --temperature 4 --epochs 60 --out runs/kd
    logitstore train --config runs/kd/config.toml --method dkd --beta 2 --out runs/dkd
    """
    values = dict(locals())
    from logitstore.precompute.processes.launch import first_error_only, this_rank
    from logitstore.trainer import train as run

    with first_error_only(), shown_progress() as progress:
        result = run(train_config(values), token=read_token(token_file), progress=progress)
    if this_rank().first:
        found = result.summary()
        emit(as_json, found, [f"{key:28} {figure(value)}" for key, value in found.items()])


@commands.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN|CKPT", help="A training run or a checkpoint.")],
    data: Data,
    val: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Calibration also after one temperature fitted here."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(metavar="ARCH", help="A checkpoint's network.")
    ] = None,
    normalize: Normalization = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE|URL", help="Compare with a teacher's logits: KD error."),
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(help="Which snapshot; or an ensemble, as train takes them.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the KD loss; default 1.")] = None,
    match_by: MatchBy = None,
    class_map: ClassMap = None,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 256,
    device: Device = None,
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

    found = measure(
        run,
        data,
        val=val,
        student=student,
        normalize=normalize,
        store=store,
        snapshot=snapshot,
        temperature=temperature,
        token=read_token(token_file),
        match_by=match_by or "index",
        class_map=class_map,
        batch_size=batch_size,
        device=device,
    )
    emit(as_json, found, [f"{key:18} {figure(value)}" for key, value in found.items()])


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
    from logitstore.cli.show.training import method_lines
    from logitstore.trainer.methods.describe import describe_methods

    found = describe_methods(method)
    emit(as_json, found, method_lines(found))


def train_config(values: dict[str, Any]) -> Any:
    """The flags of ``train`` that were given, over the file's settings, as a TrainConfig."""
    from logitstore.errors import InputError
    from logitstore.trainer import TrainConfig

    file, given = given_settings(values)
    if file is not None:
        return TrainConfig.from_toml(file, given)
    for key in ("data", "student", "out"):
        if key not in given:
            raise InputError(f"--{key} is missing: give it, or a --config FILE that has it")
    return TrainConfig(**given)


def given_settings(values: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The file that ``train``'s options name, and the flags that were given, as settings."""
    from logitstore.trainer.methods.options import parse_flags

    ctx, file = values.pop("ctx"), values.pop("config")
    for name in ("token_file", "as_json"):
        values.pop(name)
    values["size"] = values.pop("size_")
    values["omit_classes"] = listed(values.pop("omit_class"))
    for name in ("milestones", "snapshots"):
        if values[name] is not None and values[name] != "every-epoch":
            values[name] = whole_numbers(name, values[name])
    given = {key: value for key, value in values.items() if value is not None}
    given |= parse_flags(ctx.args, [name for each in ctx.command.params for name in each.opts])
    return file, given


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    from logitstore.errors import InputError

    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise InputError(f"--{name} {text!r}: expected whole numbers such as 1,5,60")
    return tuple(int(part) for part in parts)
