"""Encode a row by its k largest logits, its label's, and the mass of all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import Damaged, InputError
from logitstore.format.encodings.base import (
    FLOAT16_TOP_BITS,
    MOST_FLOAT16,
    NOT_FINITE,
    Arrays,
    Encoding,
    Labels,
    Layout,
    Logits,
    blocks,
    first_fault,
    float16_bound,
    row_scalars,
    scalar_limit,
    spacing_below,
    to_float16,
)

if TYPE_CHECKING:
    from torch import Tensor


NO_TAIL = np.finfo(np.float32).min
"""Logsumexp of an empty tail: -inf would become NaN in a subtraction."""

_TAIL_MARGIN = 2.0**-18
"""Least distance of a tail's share from the maximum: more than float32 rounds a logsumexp by."""


@dataclass(frozen=True, kw_only=True)
class TopK(Encoding):
    """Keeps the ``k`` largest logits, the label's, and the logsumexp at T=1 of the rest, the tail.

    The tail's classes are decoded to equal shares of its mass.  That mass is right at T=1 only, so
    that the encoding is unsound at much higher temperatures.  ``indices`` holds k + 1 classes, the
    largest first; the last one is the label, or the next largest where the label is among the k or
    unknown.
    """

    name = "topk"
    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"encoding topk keeps at least one class, not {self.k}: use topk:10")
        if self.k >= self.classes:
            raise InputError(
                f"encoding topk:{self.k} keeps {self.k} classes and the label, of {self.classes}: "
                f"k must be 1 to {self.classes - 1}"
            )

    @property
    def layout(self) -> Layout:
        index = "<u2" if self.classes <= 1 << 16 else "<u4"
        slots = self.k + 1
        return {"indices": (index, slots), "codes": ("<f2", slots), "scalars": ("<f4", 2)}

    def encode(self, logits: Logits, labels: Labels) -> Arrays:
        arrays = self.empty(len(logits))
        for rows in blocks(len(logits), self.classes):
            block = logits[rows]
            top = block.max(axis=1)
            scalars = row_scalars(block, FLOAT16_TOP_BITS)
            spacing = spacing_below(scalars)
            slots = self._slots(block, labels[rows])
            below = np.take_along_axis(block, slots, axis=1) - top[:, None]
            arrays["indices"][rows] = slots
            arrays["codes"][rows] = to_float16(below, spacing)
            arrays["scalars"][rows, 0] = scalars[:, 0]
            arrays["scalars"][rows, 1] = self._tail(block, slots, top, spacing)
        return arrays

    def _slots(self, logits: Logits, labels: Labels) -> NDArray[np.int64]:
        """Return the classes that are kept, (N, k + 1); of equal logits the lower class first."""
        last = self.classes - 1
        # 0.0 and -0.0 are equal.  A float's bits sort as an integer's once negatives are flipped.
        bits = (logits + np.float32(0)).view(np.int32)
        order = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64) << 32
        order |= np.arange(last, -1, -1)
        order.partition(last - self.k, axis=1)
        best = np.sort(order[:, last - self.k :], axis=1)[:, ::-1]
        slots: NDArray[np.int64] = last - (best & 0xFFFFFFFF)
        outside = (labels >= 0) & (slots[:, :-1] != labels[:, None]).all(axis=1)
        slots[outside, -1] = labels[outside]
        return slots

    def _tail(
        self,
        logits: Logits,
        slots: NDArray[np.int64],
        top: NDArray[np.float32],
        spacing: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """Return the logsumexp of the tail, relative to the maximum, (N,)."""
        if not self._tail_classes:
            return np.full(len(logits), NO_TAIL, np.float64)
        rest = logits.copy()
        np.put_along_axis(rest, slots, np.float32(-np.inf), axis=1)
        highest = rest.max(axis=1)
        mass = np.exp(rest - highest[:, None]).sum(axis=1, dtype=np.float64)
        exact = highest.astype(np.float64) - top + np.log(mass)
        # An equal share never ties with the maximum: the argmax stays.
        most = np.log(self._tail_classes) - np.maximum(2.0 * spacing, _TAIL_MARGIN)
        tail: NDArray[np.float64] = np.minimum(exact, most)
        return tail

    @property
    def _tail_classes(self) -> int:
        return self.classes - self.k - 1

    @property
    def _log_share(self) -> float:
        return float(np.float32(np.log(max(1, self._tail_classes))))

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Refuse a class that does not exist: on a GPU it would end the process."""
        if len(arrays["indices"]) and arrays["indices"].max() >= self.classes:
            raise Damaged(
                f"topk: class {arrays['indices'].max()} in rows of {self.classes} classes"
            )

    def fault(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, str] | None:
        unknown = f"it names a class that is none of {self.classes}"
        limits = {
            "indices": (self.classes - 1, unknown),
            "codes": (MOST_FLOAT16, NOT_FINITE),
            "scalars": scalar_limit(range_too=self._tail_classes > 0),
        }
        return first_fault(arrays, limits)

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Logits:
        top, tail = arrays["scalars"][:, :1], arrays["scalars"][:, 1:]
        decoded = np.empty((len(top), self.classes), np.float32)
        decoded[:] = top + (tail - np.float32(self._log_share))
        best = top + arrays["codes"].astype(np.float32)
        np.put_along_axis(decoded, arrays["indices"].astype(np.int64), best, axis=1)
        return decoded

    def decode_tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        top, tail = arrays["scalars"][:, :1], arrays["scalars"][:, 1:]
        shared = (top + (tail - self._log_share)).repeat(1, self.classes)
        return shared.scatter_(1, arrays["indices"].long(), top + arrays["codes"].float())

    def bound(self, logits: Logits) -> NDArray[np.float64]:
        """Bound the error: float16's for kept classes, else the distance to the equal share.

        Whatever the label, the tail's logits lie between the (k + 1)-th largest and the smallest,
        and so does their share.
        """
        rounding, place = float16_bound(logits), self._tail_classes
        if not place:
            return rounding
        widest = np.partition(logits, place, axis=1)[:, place].astype(np.float64)
        lowered = 2 * (np.abs(logits).max(axis=1).astype(np.float64) + 20) * 2.0**-22 + _TAIL_MARGIN
        bound: NDArray[np.float64] = widest - logits.min(axis=1) + lowered + rounding
        return bound
