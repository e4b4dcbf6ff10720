"""Train students from a dataset and a logit store, and measure them.

>>> from trainer import TrainConfig, train
>>> result = train(TrainConfig(                     # doctest: +SKIP
...     data="digits?train=true", student="mlp", out="run",
...     store="digits.zarr", method="kd", val="digits?train=false",
... ))
>>> result.metrics["val_accuracy"]                  # doctest: +SKIP
0.9698
"""

from trainer.config import TrainConfig
from trainer.evaluate import evaluate
from trainer.loop import train
from trainer.run import Result

__all__ = ["Result", "TrainConfig", "evaluate", "train"]
