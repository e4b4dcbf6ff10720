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
from trainer.config import TrainConfig
from trainer.evaluate import evaluate
from trainer.logit_dataset import LogitDataset
from trainer.logit_loader import with_logits
from trainer.loop import train
from trainer.run import Result

__all__ = [
    "LogitDataset",
    "Result",
    "TrainConfig",
    "evaluate",
    "losses",
    "train",
    "with_logits",
]
