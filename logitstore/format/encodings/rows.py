"""Join arrays with the encoding that decodes them: rows as they are stored, read and sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.format.encodings.base import Encoding, Logits

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Holds the encoded rows of some samples, in their order: each array is (N, …)."""

    encoding: Encoding
    arrays: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def part(self, span: slice) -> Rows:
        """Return some of the samples."""
        return replace(self, arrays={name: rows[span] for name, rows in self.arrays.items()})

    @classmethod
    def joined(cls, parts: Sequence[Rows], order: ArrayLike) -> Rows:
        """Join parts of one encoding: sample i is number ``order[i]`` of all parts in a row."""
        order = np.asarray(order, np.int64)
        arrays = {
            name: np.concatenate([part.arrays[name] for part in parts])[order]
            for name in parts[0].arrays
        }
        return replace(parts[0], arrays=arrays)

    def logits(self) -> Logits:
        """Decode in NumPy: float32 (N, C); Damaged if these cannot be such rows."""
        self.encoding.check(self.arrays)
        return self.encoding.decode(self.arrays)

    def tensor(self, device: Any = "cpu") -> Tensor:
        """Decode on ``device``; only the codes cross the bus.  float32 (N, C)."""
        import torch

        self.encoding.check(self.arrays)
        moved = {
            name: torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
            for name, array in self.arrays.items()
        }
        return self.encoding.decode_tensor(moved)
