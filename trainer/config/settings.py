"""``TrainConfig``, the settings of a run checked: one frozen dataclass, the run's ``config.toml``.

Values and contradictions are refused when it is made, before a file is opened or a device is
touched.  Nothing here knows how training is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import tomli_w

from logitstore.errors import InputError, UnknownName
from logitstore.storage.plain_files import MOST_TOML_BYTES, read_toml
from logitstore.trainer.config.checks import refuse_contradictions
from logitstore.trainer.config.fields import Settings
from logitstore.trainer.config.specs import HELD_OUT
from logitstore.trainer.methods.base import Method
from logitstore.trainer.methods.table import (
    find_method,
    hyper_parameter_types,
    hyper_parameters,
    make_method,
    summary,
)
from logitstore.values import check_values

LEARNING_RATES = {"sgd": 0.05, "adamw": 0.001}
"""Learning rates of the optimizers where none is given."""

AUTO = "auto"
"""The method that is no name: a store says which one is meant."""

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
"""Settings that say how and where a run is carried out.

The rest decides the result and may not change when a run is resumed.  What these lead to (the
snapshot's root, digests of the data, the kind of device) is checked instead.
"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One training run; its settings and what they mean are in ``fields``.

    Every hyper-parameter of every method is a setting too: None, its default, unless ``method``
    has it.  ``method`` "auto" becomes the method that it means, and ``method_by_store`` says that a
    store meant it.
    """

    method_by_store: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("milestones", "snapshots", "omit_classes"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        check_values(self)
        self._choose_method()
        refuse_contradictions(self, self.method_object)

    def _choose_method(self) -> None:
        """Take distillation where there is a store and no method is named, else cross-entropy."""
        by_store = self.method == AUTO and self.store is not None
        object.__setattr__(self, "method_by_store", by_store)
        if self.method == AUTO:
            object.__setattr__(self, "method", method_without_name(self.store))

    @property
    def base_lr(self) -> float:
        """Return the learning rate that the schedule scales."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    @cached_property
    def method_object(self) -> Method:
        """Return the method with this run's hyper-parameters, defaults filled in; made once."""
        return make_method(
            self.method, {name: getattr(self, name) for name in hyper_parameter_types()}
        )

    def resolved(self) -> TrainConfig:
        """Return the same run with the defaults of method, optimizer and ``val`` written out."""
        chosen: dict[str, Any] = dict(hyper_parameters(self.method_object))
        val = HELD_OUT if self.val is None and self.test is not None else self.val
        return replace(self, lr=self.base_lr, val=val, **chosen)

    def saves_epoch(self, epoch: int) -> bool:
        """Return whether the weights after this epoch (1 is the first) are kept."""
        return (
            self.record_logits or self.snapshots == "every-epoch" or epoch in (self.snapshots or ())
        )

    def to_toml(self) -> str:
        """Return the resolved run as TOML, without what is off.

        Its first line says what the method minimises.
        """
        values = asdict(self.resolved())
        text = f"# {self.method}: {summary(self.method)}\n" + tomli_w.dumps(
            {name: values[name] for name in settings() if values[name] is not None}
        )
        if len(text.encode()) > MOST_TOML_BYTES:
            raise InputError(
                f"these settings take more than the {MOST_TOML_BYTES:,} bytes of a config.toml "
                "that is read again: name fewer --snapshots, --omit-class or teachers"
            )
        return text

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """Read a run; ``overrides`` win.  Raises NotFound, UnknownName or InputError."""
        values = read_settings(path, overrides)
        refuse_missing(values, path)
        try:
            return cls(**values)
        except InputError as error:
            if overrides:
                raise  # which of the two is wrong is not known here
            raise InputError(f"{path}: {error}") from None


def method_without_name(store: str | None) -> str:
    """Return the method of a run that names none: a store is there to learn from."""
    return "ce" if store is None else "kd"


def refuse_missing(values: Mapping[str, Any], path: str | Path | None = None) -> None:
    """Refuse settings without one that has no default; ``path`` is the file that they are from."""
    for name in ("data", "student", "out"):
        if name in values:
            continue
        if path is None:
            raise InputError(f"--{name} is missing: give it, or a --config FILE that has it")
        raise InputError(f"{path}: {name!r} is missing: add it there or give --{name}")


def read_settings(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a run's TOML as ``TrainConfig``'s fields, perhaps not all; ``overrides`` win.

    The hyper-parameters of a file that names its method are that method's: another one has its own
    defaults.
    Raises NotFound, UnknownName or InputError.
    """
    document = read_toml(Path(path))
    overrides = overrides or {}
    method = document.get("method")
    if not isinstance(method, str | None):
        raise InputError(f'{path}: method = {method!r}: expected a method\'s name, such as "kd"')
    if method is not None and overrides.get("method", method) != method:
        others = hyper_parameter_types()
        document = {key: value for key, value in document.items() if key not in others}
    document = _without_stale_defaults(document, overrides)
    values = {**document, **overrides}
    for key in values:
        if key not in settings():
            raise UnknownName.among(f"setting in {path}", key, settings())
    return values


def _without_stale_defaults(
    document: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a run's file without the defaults that other settings replace now."""
    method = document.get("method", AUTO)
    kind = find_method(method_without_name(document.get("store")) if method == AUTO else method)
    old, new = kind.defaults(document), kind.defaults({**document, **overrides})
    were = {field.name: field.default for field in fields(kind)} | old
    before = document.get("optimizer", "sgd")
    if overrides.get("optimizer", before) != before:
        were, old = were | {"lr": LEARNING_RATES.get(before)}, {**old, "lr": before}
    stale = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    return {
        key: value for key, value in document.items() if key not in stale or value != were.get(key)
    }


def settings() -> list[str]:
    """Return every setting of a run; the methods' hyper-parameters come last."""
    return [field.name for field in fields(TrainConfig)]
