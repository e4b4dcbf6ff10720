"""Define the settings of a training run: a dataclass a concern, all of them in ``Settings``.

A field is also a line of a run's ``config.toml`` and an option of ``logitstore train``; the text
under it is the option's help.  None means "off", or "the default of the method or the optimizer".
Nothing is checked here: that is for ``TrainConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from logitstore.cache.modes import ReadMode
from logitstore.options import Option, Written, options_of
from logitstore.trainer.config.specs import Teach
from logitstore.trainer.methods.table import METHODS, hyper_parameter_types
from logitstore.values import Count, Positive, Precision, Weight, WholeNumber


@dataclass(frozen=True, kw_only=True)
class Run:
    """Says what is trained, by which method and for how long, and where the run lies."""

    out: Annotated[str, Written("RUN")]
    """Folder of the run. The same command again resumes the run in it."""
    data: Annotated[str, Written("DATA")]
    """Training data: npz:FILE?x=X&y=Y, torchvision:NAME?root=R&train=true, imagefolder:PATH,
    digits, module:factory or file.py:factory; any of them with samples=START:STOP."""
    student: Annotated[str, Written("ARCH")]
    """The network: resnet20 to resnet110, cnn5, mlp?hidden=256,256, torchvision:NAME, timm:NAME,
    module:factory or file.py:factory."""
    method: str = "auto"
    """How to learn: ce, kd, dkd, ps-kd, …; `logitstore methods` lists them. auto is kd with a
    store, else ce."""
    epochs: Count = 30
    """Number of epochs."""
    batch_size: Count = 128
    """Samples in a step."""
    seed: WholeNumber = 0
    """Seed of the initial weights, of the order of samples and of the views."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Says whose logits a student learns from, and how they are found and read."""

    store: Annotated[str | None, Written("STORE|URL")] = None
    """Store with the teacher's logits."""
    snapshot: str | None = None
    """Who teaches: NAME; A+B (the views of B follow those of A); mean(A,B*2) of distributions or
    logits(A,B) of logits, whose members may also be STORE::NAME; or a schedule such as
    A,B@11,logits(A,B)@31, where each teaches from its epoch on. Needed if the store has several
    snapshots."""
    teach: Teach = "all"
    """Samples on which the teacher's term counts: all, or the half of whose label the teacher is
    more, or less, sure."""
    expect_root: str | None = None
    """Refuse a snapshot with any other root, and rows that are not proven to be of it."""
    match_by: Literal["index", "key"] = "index"
    """How samples are found in the store: by their order or by their file names."""
    class_map: Annotated[str | None, Written("FILE")] = None
    """JSON object from the data's class to the store's class."""
    allow_unbound: bool = False
    """Accept logits that nothing binds to images, such as imported ones."""
    allow_mismatch: bool = False
    """Accept images that differ from those that the teacher saw."""
    read: ReadMode = "auto"
    """How the teacher's rows are read: from a copy that is decoded once (materialise), from the
    server batch by batch (stream), or by whole shards (direct). auto takes the first that is
    possible."""
    cache: Annotated[str | None, Written("DIR")] = None
    """Folder of the decoded copies; without it the environment's LOGITSTORE_CACHE or
    ~/.cache/logitstore."""
    patience: Positive = 600.0
    """Seconds that a server may stay away."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Names the data on which a student is measured."""

    val: Annotated[str | None, Written("DATA|split:SHARE")] = None
    """Data that are measured after each epoch and choose the best one. split:0.1 holds a tenth of
    the training samples out. Without it there is no validation, or with --test split:0.1."""
    test: Annotated[str | None, Written("DATA")] = None
    """Data that are measured once, at the end, with the last and the best weights; they choose
    nothing."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Says which samples are trained on, and with which labels."""

    limit: Count | None = None
    """Train on this many samples of the data."""
    limit_seed: WholeNumber = 0
    """Seed of which samples --limit takes and split:SHARE holds out."""
    omit_classes: Annotated[
        tuple[str | int, ...], Written("CLASS,…", "omit-class", repeats=True)
    ] = ()
    """Names or numbers of classes that are not trained on; repeat, or with commas."""
    specialist: Annotated[str | None, Written("PLAN.json:NAME")] = None
    """Train this specialist of a plan that `logitstore specialists plan` wrote."""
    label_noise: Annotated[float, Field(gt=0, le=1)] | None = None
    """Give this share of the labels wrong values. The store and the validation data keep the true
    ones."""
    label_noise_seed: WholeNumber = 0
    """Seed of which labels become wrong, and of their values."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Says how the student's images are prepared."""

    augment: Annotated[str | None, Written("PRESET|FILE")] = None
    """Views of the student's own, new ones in each epoch, instead of the store's."""
    size: Count | None = None
    """Side of the image, if not the store's or the preset's."""
    normalize: Annotated[str | None, Written("imagenet|cifar10|none|MEAN/STD")] = None
    """How pixels are scaled for the student: MEAN/STD is such as 0.5,0.5,0.5/0.2,0.2,0.2."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Says how the weights begin and how they change."""

    init: Annotated[str | None, Written("RUN|CKPT")] = None
    """Begin with these weights. The last layer may differ in shape, and is then a fresh one."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer."""
    lr: Positive | None = None
    """Learning rate; without it 0.05 for sgd and 0.001 for adamw."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd, or the first beta of adamw."""
    nesterov: bool = False
    """Use Nesterov's momentum."""
    weight_decay: Weight = 5e-4
    """Weight decay."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """How the learning rate changes over the epochs."""
    milestones: Annotated[tuple[int, ...], Written("EPOCH,…")] = ()
    """Epochs after which --schedule step lowers the learning rate, such as 60,120,160."""
    lr_decay: Positive = 0.1
    """Factor of the learning rate at each milestone."""
    warmup_epochs: WholeNumber = 0
    """Epochs in which the learning rate rises linearly from 0."""


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Says what stays in the run's folder beside the result."""

    snapshots: Annotated[
        Literal["every-epoch"] | tuple[int, ...] | None, Written("every-epoch|EPOCH,…")
    ] = None
    """Keep the weights after these epochs, such as 1,5,60. They can be teachers."""
    record_logits: bool = False
    """Keep the weights after each epoch, and the student's own logits as snapshots of
    OUT/self.zarr."""
    checkpoint_seconds: Positive = 300.0
    """Seconds between two checkpoints inside an epoch."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Says where and how fast a run is computed."""

    device: Annotated[str | None, Written("cpu|cuda|cuda:N")] = None
    """Where the student is trained; without it a GPU if there is one."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass; bf16 and fp16 need a GPU."""
    memory_limit: Annotated[str | None, Written("SIZE")] = None
    """Most memory of the GPU that the run may hold, such as 2GiB. Batches go through the network
    in the largest parts that fit."""
    micro_batch: Count | None = None
    """Most images that go through the network at once, if not the whole batch."""
    recompute: bool = False
    """Use less memory and more time: compute activations again in the backward pass."""
    workers: WholeNumber | None = None
    """Processes that read images; without it none for data that are in memory."""


if TYPE_CHECKING:

    class HyperParameters:
        """Joins the hyper-parameters of all methods; only the methods know their names."""

        def __init__(self, **hyper_parameters: Any) -> None: ...

else:
    HyperParameters = make_dataclass(
        "HyperParameters",
        [
            (name, kind | None, field(default=None))
            for name, kind in hyper_parameter_types().items()
        ],
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class Settings(
    HyperParameters, Machine, Keeping, Optimisation, Images, Samples, Measuring, Teacher, Run
):
    """Joins all settings of a run, in the order of ``HEADINGS``."""


HEADINGS: dict[str, type[Any]] = {
    "The run": Run,
    "The teacher": Teacher,
    "Hyper-parameters of the method": HyperParameters,
    "The data to measure on": Measuring,
    "The samples and their labels": Samples,
    "The images": Images,
    "The optimizer": Optimisation,
    "What is kept": Keeping,
    "The machine": Machine,
}
"""The concerns under the headings that ``--help`` gives them, in its order."""


def options_by_heading() -> dict[str, list[Option]]:
    """Return all settings as options of the command line, under their headings."""
    return {
        heading: hyper_parameter_options() if kind is HyperParameters else options_of(kind)
        for heading, kind in HEADINGS.items()
    }


def hyper_parameter_options() -> list[Option]:
    """Return every hyper-parameter that a method has, once, without a default: methods differ.

    Where they also differ in what it means, the help says it for each of them.
    """
    options: dict[str, Option] = {}
    texts: dict[str, dict[str, list[str]]] = {}
    for method, kind in METHODS.items():
        for option in options_of(kind):
            options.setdefault(option.field, replace(option, default=None))
            texts.setdefault(option.field, {}).setdefault(option.help, []).append(method)
    return [replace(option, help=_joined(texts[name])) for name, option in options.items()]


def _joined(methods_of: dict[str, list[str]]) -> str:
    if len(methods_of) == 1:
        return next(iter(methods_of))
    return " ".join(f"{', '.join(methods)}: {text}" for text, methods in methods_of.items())
