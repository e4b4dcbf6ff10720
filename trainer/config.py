"""What a training run is: one frozen dataclass, the same as the run's ``config.toml``.

Contradictions are refused when it is made, before a file is opened or a device is touched; None
means "off" or "the method's (optimiser's) default".  Nothing here knows how training is done.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from logitstore.console import parse_size
from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.reading import Read, not_served
from trainer.device import needs_gpu
from trainer.methods import Method, find_method, hyper_parameters, make_method

LEARNING_RATES = {"sgd": 0.05, "adamw": 0.001}
HYPER_PARAMETERS = ("temperature", "ce_weight", "kd_weight")
_WITH_STORE = (
    "snapshot",
    "expect_root",
    "match_by",
    "class_map",
    "allow_unbound",
    "allow_mismatch",
    "read",
    "cache",
)
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    ``data`` and ``val`` are dataset specs, ``student`` an architecture spec, ``store`` a path or a
    URL.
    ``lr`` None: 0.05 for sgd, 0.001 for adamw; ``momentum`` is SGD's, or AdamW's first beta.
    ``augment``, a view preset or file, prepares the images where no store says it, or otherwise
    than the store's (fixed) views; each epoch is a view of its own.  ``size`` None: the store's or
    the preset's.
    ``memory_limit`` (2GiB, 1500MiB or plain bytes) caps all that the run holds on a GPU: a batch
    goes through the network in the largest parts that fit, or in parts of at most ``micro_batch``
    samples.  ``recompute`` is activation checkpointing: less memory, more time.
    ``read`` is how the teacher's rows are had (``prepare_reading``); ``cache`` is the folder for
    decoded copies, None: LOGITSTORE_CACHE or ~/.cache/logitstore.
    ``snapshots`` keeps the weights after these epochs (1 is the first).  ``patience`` and
    ``checkpoint_seconds`` (between checkpoints inside an epoch) are in seconds.
    """

    data: str
    student: str
    out: str
    store: str | None = None
    snapshot: str | None = None
    method: str = "ce"
    temperature: float | None = None
    ce_weight: float | None = None
    kd_weight: float | None = None
    epochs: int = 30
    batch_size: int = 128
    seed: int = 0
    val: str | None = None
    limit: int | None = None
    limit_seed: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    normalize: str | None = None
    augment: str | None = None
    size: int | None = None
    snapshots: Literal["every-epoch"] | tuple[int, ...] | None = None
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
        for name in ("milestones", "snapshots"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, adapter in _adapters().items():
            _check_type(name, adapter, getattr(self, name))
        _check_numbers(self)
        _check_source(self)
        _check_optimisation(self)
        _check_memory(self)

    @property
    def base_lr(self) -> float:
        """The learning rate that the schedule scales."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    def make_method(self) -> Method:
        """The method with this run's hyper-parameters, defaults filled in."""
        return make_method(self.method, {key: getattr(self, key) for key in HYPER_PARAMETERS})

    def resolved(self) -> TrainConfig:
        """The same run with the method's and the optimiser's defaults written out."""
        chosen: dict[str, Any] = dict(hyper_parameters(self.make_method()))
        return replace(self, lr=self.base_lr, **chosen)

    def saves_epoch(self, epoch: int) -> bool:
        """Whether the weights after this epoch (1 is the first) are kept."""
        return self.snapshots == "every-epoch" or epoch in (self.snapshots or ())

    def to_toml(self) -> str:
        """The resolved run as TOML; what is off is left out."""
        return tomli_w.dumps(
            {key: value for key, value in asdict(self.resolved()).items() if value is not None}
        )

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """Read a run; ``overrides`` win.  Raises NotFound, UnknownName or InputError."""
        try:
            document = tomllib.loads(Path(path).read_text())
        except FileNotFoundError:
            raise NotFound(f"{path}: there is no such file") from None
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable TOML file: {error}") from None
        values = {**document, **(overrides or {})}
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise UnknownName.among(f"setting in {path}", key, known)
        for key in ("data", "student", "out"):
            if key not in values:
                raise InputError(f"{path}: {key!r} is missing: add it there or give --{key}")
        return cls(**values)


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


def _check_numbers(config: TrainConfig) -> None:
    for name in ("epochs", "batch_size", "limit", "size", "micro_batch"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    for name in ("lr", "gamma", "patience", "checkpoint_seconds"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise InputError(f"{name} must be positive, not {value}")
    for name in ("weight_decay", "workers", "warmup_epochs", "seed", "limit_seed"):
        value = getattr(config, name)
        if value is not None and value < 0:
            raise InputError(f"{name} must not be negative, not {value}")
    if not 0 <= config.momentum < 1:
        raise InputError(f"momentum must be in [0, 1), not {config.momentum}")


def _check_source(config: TrainConfig) -> None:
    method = find_method(config.method)
    config.make_method()
    if config.store is None:
        if method.needs_teacher:
            raise InputError(
                f"method {config.method!r} needs a teacher's logits: give --store STORE "
                "(and --snapshot NAME), or use --method ce"
            )
        for name in _WITH_STORE:
            if getattr(config, name) != getattr(TrainConfig, name):
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} without a store: give --store STORE, or drop {flag}")
    elif config.read == "stream" and not config.store.startswith(("http://", "https://")):
        raise not_served(config.store)


def _check_optimisation(config: TrainConfig) -> None:
    if config.nesterov and (config.optimizer != "sgd" or config.momentum == 0):
        raise InputError(
            "nesterov needs --optimizer sgd and a --momentum above 0: give both or drop it"
        )
    if config.schedule == "step" and not config.milestones:
        raise InputError(
            "schedule 'step' needs --milestones, the epochs of the steps: give some, or use "
            "--schedule constant"
        )
    if config.schedule != "step" and config.milestones:
        raise InputError(
            f"milestones belong to --schedule step, not {config.schedule!r}: change the schedule "
            "or drop --milestones"
        )
    inside = all(0 < milestone < config.epochs for milestone in config.milestones)
    if not inside or list(config.milestones) != sorted(set(config.milestones)):
        raise InputError(
            f"milestones {config.milestones} must rise and lie inside 1..{config.epochs - 1}: "
            "change them or --epochs"
        )
    if config.warmup_epochs >= config.epochs:
        raise InputError(
            f"{config.warmup_epochs} warm-up epochs leave nothing of {config.epochs}: fewer "
            "--warmup-epochs or more --epochs"
        )
    if isinstance(config.snapshots, tuple):
        for epoch in config.snapshots:
            if not 1 <= epoch <= config.epochs:
                raise InputError(
                    f"snapshots: there is no epoch {epoch} in a run of {config.epochs}: change "
                    "--snapshots or --epochs"
                )
    if config.device is not None and config.device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device {config.device!r} is not known: use cpu, cuda or cuda:N")
    if config.device == "cpu" and config.precision != "fp32":
        raise InputError(
            f"precision {config.precision!r} needs a GPU: use --device cuda or --precision fp32"
        )


def _check_memory(config: TrainConfig) -> None:
    if config.micro_batch is not None and config.micro_batch > config.batch_size:
        raise InputError(
            f"micro_batch {config.micro_batch} is more than batch_size {config.batch_size}: a "
            "smaller --micro-batch, or a larger --batch-size"
        )
    if config.memory_limit is not None:
        parse_size("memory_limit", config.memory_limit)
        if config.device == "cpu":
            raise needs_gpu(config.memory_limit)
