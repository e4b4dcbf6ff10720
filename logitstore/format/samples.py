from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from logitstore.format.cards import DatasetCard


@dataclass(frozen=True)
class Samples:
    """What a store says of its dataset: labels int32 (N,), -1 where unknown, and optional keys."""

    name: str
    labels: NDArray[np.int32]
    keys: Sequence[str] | None = None

    def card(self) -> DatasetCard:
        """Name, length and the digest over labels and keys."""
        digest = sha256(np.ascontiguousarray(self.labels, "<i4").tobytes())
        if self.keys is not None:
            digest.update(b"\0".join(key.encode() for key in self.keys))
        return DatasetCard(name=self.name, length=len(self.labels), sha256=digest.hexdigest())
