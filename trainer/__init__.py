"""Train students from a dataset and a logit store, and measure them.

>>> from trainer import TrainConfig, train
>>> result = train(TrainConfig(                     # doctest: +SKIP
...     data="digits?train=true", student="mlp", out="run",
...     store="digits.zarr", method="kd", val="digits?train=false",
... ))
>>> result.metrics["val_accuracy"]                  # doctest: +SKIP
0.9698

For a loop of one's own: ``LogitDataset``, ``with_logits`` and ``losses``; ``trainer/examples``.
"""

from trainer import losses
from trainer.bias import correct_bias
from trainer.config import TrainConfig
from trainer.evaluate import evaluate
from trainer.logit_dataset import LogitDataset
from trainer.logit_loader import with_logits
from trainer.loop import train
from trainer.report import report
from trainer.run import Result
from trainer.sweep import sweep

__all__ = [
    "LogitDataset",
    "Result",
    "TrainConfig",
    "correct_bias",
    "evaluate",
    "losses",
    "report",
    "sweep",
    "train",
    "with_logits",
]
