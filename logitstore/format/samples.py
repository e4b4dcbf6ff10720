"""The samples of a dataset as a store records them: labels, keys, and their digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from logitstore.format.cards import DatasetCard


@dataclass(frozen=True)
class Samples:
    """The samples of a dataset: labels int32 (N,), -1 where unknown, and keys if they have any."""

    name: str
    labels: NDArray[np.int32]
    keys: Sequence[str] | None = None

    def card(self) -> DatasetCard:
        """Return the dataset's card: name, length and the digest over labels and keys."""
        digest = sha256(np.ascontiguousarray(self.labels, "<i4").tobytes())
        if self.keys is not None:
            digest.update(b"\0".join(key.encode() for key in self.keys))
        return DatasetCard(name=self.name, length=len(self.labels), sha256=digest.hexdigest())
