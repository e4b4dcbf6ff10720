"""Train students from a dataset and a logit store, and measure them.

>>> from logitstore import TrainConfig, train
>>> result = train(TrainConfig(                     # doctest: +SKIP
...     data="digits?train=true", student="mlp", out="run",
...     store="digits.zarr", method="kd", val="digits?train=false",
... ))
>>> result.metrics["val_accuracy"]                  # doctest: +SKIP
0.9698

The folder is ``trainer/``, the import name ``logitstore.trainer``.  A name is loaded when it is
first used: the settings and the methods' table need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitstore.trainer import losses, metrics, schedules
    from logitstore.trainer.config.settings import TrainConfig
    from logitstore.trainer.evaluation.bias import correct_bias
    from logitstore.trainer.evaluation.evaluate import evaluate
    from logitstore.trainer.own_loop.dataset import LogitDataset
    from logitstore.trainer.own_loop.loader import with_logits
    from logitstore.trainer.reporting import report
    from logitstore.trainer.run.result import Result
    from logitstore.trainer.run.train import train
    from logitstore.trainer.studies.sweep import sweep

_HOMES = {
    "LogitDataset": "own_loop.dataset",
    "Result": "run.result",
    "TrainConfig": "config.settings",
    "correct_bias": "evaluation.bias",
    "evaluate": "evaluation.evaluate",
    "report": "reporting",
    "sweep": "studies.sweep",
    "train": "run.train",
    "with_logits": "own_loop.loader",
}

__all__ = [
    "LogitDataset",
    "Result",
    "TrainConfig",
    "correct_bias",
    "evaluate",
    "losses",
    "metrics",
    "report",
    "schedules",
    "sweep",
    "train",
    "with_logits",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
