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
    from logitstore.trainer import losses as losses
    from logitstore.trainer import metrics as metrics
    from logitstore.trainer import schedules as schedules
    from logitstore.trainer.config.settings import TrainConfig as TrainConfig
    from logitstore.trainer.evaluation.bias import correct_bias as correct_bias
    from logitstore.trainer.evaluation.evaluate import evaluate as evaluate
    from logitstore.trainer.own_loop.dataset import LogitDataset as LogitDataset
    from logitstore.trainer.own_loop.loader import with_logits as with_logits
    from logitstore.trainer.reporting import report as report
    from logitstore.trainer.run.result import Result as Result
    from logitstore.trainer.run.train import train as train
    from logitstore.trainer.studies.sweep import sweep as sweep

_HOMES = {
    "LogitDataset": "own_loop.dataset",
    "Result": "run.result",
    "TrainConfig": "config.settings",
    "correct_bias": "evaluation.bias",
    "evaluate": "evaluation.evaluate",
    "losses": "losses",
    "metrics": "metrics",
    "report": "reporting",
    "schedules": "schedules",
    "sweep": "studies.sweep",
    "train": "run.train",
    "with_logits": "own_loop.loader",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = import_module(f"{__name__}.{_HOMES[name]}")
        return home if _HOMES[name] == name else getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
