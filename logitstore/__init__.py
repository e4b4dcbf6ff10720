"""Knowledge distillation without a teacher in the room: verified stores of teacher logits.

>>> import logitstore
>>> store = logitstore.open_store("c10.zarr")              # doctest: +SKIP
>>> store.snapshots["resnet56"].logits([3, 1, 4]).shape    # doctest: +SKIP
(3, 10)

Importing this package imports neither torch, numpy nor zarr: names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

_PUBLIC = {
    "Ensemble": "logitstore.ensemble",
    "LogitStore": "logitstore.stores",
    "Snapshot": "logitstore.reader",
    "open_store": "logitstore.opening",
    "Cache": "logitstore.cache",
    "prepare_reading": "logitstore.reading",
    "Rows": "logitstore.encodings",
    "LogitstoreError": "logitstore.errors",
}
__all__ = [
    "Cache",
    "Ensemble",
    "LogitStore",
    "LogitstoreError",
    "Rows",
    "Snapshot",
    "__version__",
    "open_store",
    "prepare_reading",
]

if TYPE_CHECKING:
    from logitstore.cache import Cache
    from logitstore.encodings import Rows
    from logitstore.ensemble import Ensemble
    from logitstore.errors import LogitstoreError
    from logitstore.opening import open_store
    from logitstore.reader import Snapshot
    from logitstore.reading import prepare_reading
    from logitstore.stores import LogitStore


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
