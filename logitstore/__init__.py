"""Knowledge distillation without a teacher in the room: verified stores of teacher logits.

>>> import logitstore
>>> store = logitstore.open_store("c10.zarr")              # doctest: +SKIP
>>> store.snapshots["resnet56"].logits([3, 1, 4]).shape    # doctest: +SKIP
(3, 10)

These are the names for people's own code.  Importing this package imports neither torch, numpy nor
zarr: a name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitstore.cache.cache import Cache as Cache
    from logitstore.cache.prepare import prepare_reading as prepare_reading
    from logitstore.errors import LogitstoreError as LogitstoreError
    from logitstore.format.encodings.rows import Rows as Rows
    from logitstore.reading.ensemble import Ensemble as Ensemble
    from logitstore.reading.opening import open_store as open_store
    from logitstore.reading.snapshot import Snapshot as Snapshot
    from logitstore.reading.store import LogitStore as LogitStore
    from logitstore.trainer import losses as losses
    from logitstore.trainer import metrics as metrics
    from logitstore.trainer.config.settings import TrainConfig as TrainConfig
    from logitstore.trainer.evaluation.evaluate import evaluate as evaluate
    from logitstore.trainer.own_loop.dataset import LogitDataset as LogitDataset
    from logitstore.trainer.own_loop.loader import with_logits as with_logits
    from logitstore.trainer.run.train import train as train
    from logitstore.version import __version__ as __version__

_HOMES = {
    "Cache": "logitstore.cache.cache",
    "Ensemble": "logitstore.reading.ensemble",
    "LogitDataset": "logitstore.trainer.own_loop.dataset",
    "LogitStore": "logitstore.reading.store",
    "LogitstoreError": "logitstore.errors",
    "Rows": "logitstore.format.encodings.rows",
    "Snapshot": "logitstore.reading.snapshot",
    "TrainConfig": "logitstore.trainer.config.settings",
    "__version__": "logitstore.version",
    "evaluate": "logitstore.trainer.evaluation.evaluate",
    "losses": "logitstore.trainer",
    "metrics": "logitstore.trainer",
    "open_store": "logitstore.reading.opening",
    "prepare_reading": "logitstore.cache.prepare",
    "train": "logitstore.trainer.run.train",
    "with_logits": "logitstore.trainer.own_loop.loader",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
