"""What a training run is: one frozen dataclass, the same as the run's ``config.toml``.

Contradictions are refused when it is made, before a file is opened or a device is touched; None
means "off" or "the method's (optimiser's) default".  Nothing here knows how training is done.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from logitstore.cache.ways import Read
from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.trainer.config.checks import refuse_contradictions
from logitstore.trainer.config.specs import HELD_OUT, Teach
from logitstore.trainer.methods.base import Method
from logitstore.trainer.methods.describe import summary
from logitstore.trainer.methods.table import (
    find_method,
    hyper_parameter_types,
    hyper_parameters,
    make_method,
)

LEARNING_RATES = {"sgd": 0.05, "adamw": 0.001}


# How and where a run is carried out; the rest decides its result and may not change on resume.
# What these lead to (root of the snapshot, digests of the data, kind of device) is checked instead.
EXECUTION = frozenset(
    {
        "out",
        "store",
        "expect_root",
        "device",
        "memory_limit",
        "recompute",
        "workers",
        "patience",
        "read",
        "cache",
        "checkpoint_seconds",
    }
)


if TYPE_CHECKING:

    class _HyperParameters:
        """What the methods bring; only they know the names."""

        def __init__(self, **hyper_parameters: Any) -> None: ...

else:
    _HyperParameters = make_dataclass(
        "_HyperParameters",
        [
            (name, kind | None, field(default=None))
            for name, kind in hyper_parameter_types().items()
        ],
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_HyperParameters):
    """One training run.

    Every hyper-parameter of every method (``trainer.methods``, METHODS.md) is a field too: None,
    its default, unless ``method`` has it.

    ``data``, ``val`` and ``test`` are dataset specs, ``student`` an architecture spec, ``store`` a
    path or a URL.
    ``val`` is measured after each epoch and chooses the best one; ``split:0.1`` holds that share of
    the training samples out, drawn by ``limit_seed`` before ``limit`` takes from the rest.
    ``test`` is measured once, at the end, and chooses nothing; with it ``val`` None is split:0.1.
    ``omit_classes``, names or numbers, are not trained on.  ``init``, a run or a checkpoint, has
    the weights to begin with; the last layer may differ in shape, and is then a fresh one.
    ``specialist`` (FILE.json:NAME, ``trainer.specialists``) trains one of a plan's specialists.
    ``lr`` None: 0.05 for sgd, 0.001 for adamw; ``momentum`` is SGD's, or AdamW's first beta.
    ``augment``, a view preset or file, prepares the images where no store says it, or otherwise
    than the store's (fixed) views; each epoch is a view of its own.  ``size`` None: the store's or
    the preset's.
    ``memory_limit`` (2GiB, 1500MiB or plain bytes) caps all that the run holds on a GPU: a batch
    goes through the network in the largest parts that fit, or in parts of at most ``micro_batch``
    samples.  ``recompute`` is activation checkpointing: less memory, more time.
    ``read`` is how the teacher's rows are had (``prepare_reading``); ``cache`` is the folder for
    decoded copies, None: LOGITSTORE_CACHE or ~/.cache/logitstore.
    ``label_noise`` gives that share of the labels, drawn by ``label_noise_seed``, wrong values; the
    store and the validation data keep the true ones.  ``teach``: the half of the samples, by the
    teacher's probability of their label, on which the teacher's term counts.
    ``snapshots`` keeps the weights after these epochs (1 is the first).  ``record_logits`` keeps
    all of them and builds a store of each epoch's eval-mode logits, OUT/self.zarr.  ``patience``
    and ``checkpoint_seconds`` (between checkpoints inside an epoch) are in seconds.
    """

    data: str
    student: str
    out: str
    store: str | None = None
    snapshot: str | None = None
    method: str = "ce"
    epochs: int = 30
    batch_size: int = 128
    seed: int = 0
    val: str | None = None
    test: str | None = None
    limit: int | None = None
    limit_seed: int = 0
    omit_classes: tuple[str | int, ...] = ()
    init: str | None = None
    specialist: str | None = None
    label_noise: float | None = None
    label_noise_seed: int = 0
    teach: Teach = "all"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    milestones: tuple[int, ...] = ()
    lr_decay: float = 0.1
    warmup_epochs: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    normalize: str | None = None
    augment: str | None = None
    size: int | None = None
    snapshots: Literal["every-epoch"] | tuple[int, ...] | None = None
    record_logits: bool = False
    expect_root: str | None = None
    match_by: Literal["index", "key"] = "index"
    class_map: str | None = None
    allow_unbound: bool = False
    allow_mismatch: bool = False
    device: str | None = None
    memory_limit: str | None = None
    micro_batch: int | None = None
    recompute: bool = False
    workers: int | None = None
    patience: float = 600.0
    read: Read = "auto"
    cache: str | None = None
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("milestones", "snapshots", "omit_classes"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, adapter in _adapters().items():
            _check_type(name, adapter, getattr(self, name))
        refuse_contradictions(self)

    @property
    def base_lr(self) -> float:
        """The learning rate that the schedule scales."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    @cached_property
    def method_object(self) -> Method:
        """The method with this run's hyper-parameters, defaults filled in; made once."""
        return make_method(
            self.method, {name: getattr(self, name) for name in hyper_parameter_types()}
        )

    def resolved(self) -> TrainConfig:
        """The same run with all defaults written out: the method's, the optimiser's, ``val``."""
        chosen: dict[str, Any] = dict(hyper_parameters(self.method_object))
        val = HELD_OUT if self.val is None and self.test is not None else self.val
        return replace(self, lr=self.base_lr, val=val, **chosen)

    def saves_epoch(self, epoch: int) -> bool:
        """Whether the weights after this epoch (1 is the first) are kept."""
        return (
            self.record_logits or self.snapshots == "every-epoch" or epoch in (self.snapshots or ())
        )

    def to_toml(self) -> str:
        """The resolved run as TOML, under what its method minimises; what is off is left out."""
        values = asdict(self.resolved())
        return f"# {self.method}: {summary(self.method)}\n" + tomli_w.dumps(
            {name: values[name] for name in settings() if values[name] is not None}
        )

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """Read a run; ``overrides`` win.  Raises NotFound, UnknownName or InputError."""
        values = read_settings(path, overrides)
        for key in ("data", "student", "out"):
            if key not in values:
                raise InputError(f"{path}: {key!r} is missing: add it there or give --{key}")
        return cls(**values)


def read_settings(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A run's TOML as ``TrainConfig``'s fields, perhaps not all; ``overrides`` win.

    The hyper-parameters of a file that names its method are that method's: another one has its own
    defaults.
    Raises NotFound, UnknownName or InputError.
    """
    try:
        document = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file: {error}") from None
    given = overrides or {}
    if "method" in document and given.get("method", document["method"]) != document["method"]:
        others = hyper_parameter_types()
        document = {key: value for key, value in document.items() if key not in others}
    document = _without_stale_defaults(document, given)
    values = {**document, **given}
    known = [field.name for field in fields(TrainConfig)]
    for key in values:
        if key not in known:
            raise UnknownName.among(f"setting in {path}", key, known)
    return values


def _without_stale_defaults(
    document: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """A run's file without the defaults that are others now, because of what is given."""
    kind = find_method(document.get("method", "ce"))
    old, new = kind.defaults(document), kind.defaults({**document, **given})
    were = {field.name: field.default for field in fields(kind)} | old
    before = document.get("optimizer", "sgd")
    if given.get("optimizer", before) != before:
        were, old = were | {"lr": LEARNING_RATES.get(before)}, {**old, "lr": before}
    stale = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    return {
        key: value for key, value in document.items() if key not in stale or value != were.get(key)
    }


def settings() -> list[str]:
    """Every setting of a run; the methods' hyper-parameters last."""
    brought = hyper_parameter_types()
    return sorted((field.name for field in fields(TrainConfig)), key=lambda name: name in brought)


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(TrainConfig)
    return {name: TypeAdapter(hint, config=strict) for name, hint in hints.items()}


def _check_type(name: str, adapter: TypeAdapter[Any], value: Any) -> None:
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        raise InputError(f"{name} = {value!r}: {error.errors()[0]['msg'].lower()}") from None
