"""Define an encoding, and what the encodings relative to a row's maximum share; NumPy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


Logits = NDArray[np.float32]
"""Float values of some rows, (N, C)."""

Labels = NDArray[np.int32]
"""Classes of some rows, (N,); -1 where unknown."""

Arrays = dict[str, NDArray[Any]]
"""Encoded values of some rows by the array's name, (N, width) each."""

Layout = dict[str, tuple[str, int]]
"""Dtype and width of each array by its name."""

_BLOCK_BYTES = 256 << 10
"""Bytes of float32 logits per block: small enough for a core's L2 cache."""

_SPREAD_BITS = 5
"""Significant bits that are kept of a row's range."""

_LEAST_SPREAD = 2.0**-60
"""Range of the narrowest rows: squares and quotients of smaller ones would become 0."""

FLOAT16_FLOOR = -65504.0
"""Least logit relative to the maximum: lower ones have probability 0 at temperatures up to 80."""

FLOAT16_TOP_BITS = 13
"""Bits of a maximum below its row's range, for codes in float16."""

_MOST_TOP, _LEAST = 2.0**38, -(2.0**126)
"""Limits of a row: beyond them, rounding its maximum or its range in float32 loses the rest."""

_MOST_SCALARS = np.array([2 * _MOST_TOP, 2.0**127], np.float32)
"""Limits of a row's two scalars, rounded: beyond them a decoded logit might not be finite."""

MOST_FLOAT16, MOST_FLOAT32 = np.finfo(np.float16).max, np.finfo(np.float32).max
"""The largest finite numbers."""

NOT_FINITE = "logits are not finite"
"""The fault of a row that has a value beyond these limits."""

LIMITS = "logits must be within ±2.7e11, those of masked classes at least -8.5e37"
"""The limits in words, for errors."""


@dataclass(frozen=True, kw_only=True)
class Encoding(ABC):
    """Encodes and decodes rows of ``classes`` logits; its other fields are its parameters."""

    name: ClassVar[str]
    classes: int

    @property
    def parameters(self) -> dict[str, int]:
        """The values that are written beside the name, so that a reader makes the same encoding."""
        return {name: getattr(self, name) for name in self.defaults()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of each parameter, ``dataclasses.MISSING`` where it has none."""
        return {field.name: field.default for field in fields(cls) if field.name != "classes"}

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Each array's dtype and its values per row."""

    @abstractmethod
    def encode(self, logits: Logits, labels: Labels) -> Arrays:
        """Encode rows, float32 (N, C), with their labels (N,), -1 where unknown."""

    @abstractmethod
    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Logits:
        """Decode rows in NumPy: float32 (N, C)."""

    @abstractmethod
    def decode_tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Decode rows on the device that holds the arrays; on a CPU the same bits as ``decode``."""

    @abstractmethod
    def bound(self, logits: Logits) -> NDArray[np.float64]:
        """Bound the absolute error of each row's logits, (N,)."""

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:  # noqa: B027 (most have nothing)
        """Raise Damaged if arrays of the right shape cannot be this encoding's."""

    @abstractmethod
    def fault(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, str] | None:
        """Return the first row that no writer writes and what is wrong with it; None if none is.

        Of all other rows every decoded logit is finite, and every class exists.
        """

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row of all arrays, uncompressed."""
        return sum(np.dtype(kind).itemsize * width for kind, width in self.layout.values())

    @property
    def widest(self) -> int:
        """Bytes per row of the widest array, which set the sizes of shards and chunks."""
        return max(np.dtype(kind).itemsize * width for kind, width in self.layout.values())

    def empty(self, rows: int) -> Arrays:
        """Allocate the arrays of so many rows."""
        return {name: np.empty((rows, width), kind) for name, (kind, width) in self.layout.items()}


def beyond(values: NDArray[Any], most: Any) -> int | None:
    """Return the first row with a value that is NaN or beyond ±``most``, of (N, width)."""
    if values.dtype == np.float16:  # by its bits: NumPy compares float16 five times slower
        values, most = values.view(np.uint16) & 0x7FFF, np.float16(most).view(np.uint16)
    within = np.abs(values) <= most if values.dtype.kind == "f" else values <= most
    return None if within.all() else int(within.all(axis=1).argmin())


def first_fault(
    arrays: Mapping[str, NDArray[Any]], limits: Mapping[str, tuple[Any, str]]
) -> tuple[int, str] | None:
    """Return the first row beyond the limit of an array, and the words beside that limit."""
    rows = [(beyond(arrays[name], most), what) for name, (most, what) in limits.items()]
    return min(((row, what) for row, what in rows if row is not None), default=None)


def scalar_limit(*, range_too: bool = True) -> tuple[NDArray[np.float32], str]:
    """Return the limit of ``scalars`` for ``first_fault``; of m alone without ``range_too``."""
    most = _MOST_SCALARS if range_too else np.array([_MOST_SCALARS[0], np.finfo(np.float32).max])
    return most, NOT_FINITE


def unusable(logits: Logits) -> NDArray[np.intp]:
    """Return the numbers of rows that are not finite or exceed ``LIMITS``."""
    top, least = logits.max(axis=1), logits.min(axis=1)
    return np.flatnonzero(~((np.abs(top) <= _MOST_TOP) & (least >= _LEAST)))


def blocks(rows: int, classes: int) -> Iterator[slice]:
    """Yield slices of all rows, each small enough for a core's cache."""
    step = max(1, _BLOCK_BYTES // (4 * classes))
    return (slice(start, start + step) for start in range(0, rows, step))


def row_scalars(logits: Logits, top_bits: int) -> NDArray[np.float32]:
    """Return each row's maximum and its distance to the minimum, (N, 2), in few significant bits.

    Fewer bits make smaller stores, because zeros compress well.  The distance is rounded up; the
    maximum to a ``2**-top_bits`` of the distance's next power of two, which shifts a whole row and
    so changes no probability.
    """
    top, spread = top_and_spread(logits)
    mantissa, exponent = np.frexp(np.where(spread > 0, np.maximum(spread, _LEAST_SPREAD), 0))
    grid = np.ldexp(1.0, exponent - top_bits)
    rounded = np.ldexp(np.ceil(np.ldexp(mantissa, _SPREAD_BITS)), exponent - _SPREAD_BITS)
    shifted = np.where(spread > 0, np.rint(top / grid) * grid, top)
    return np.stack([shifted, rounded], axis=1).astype(np.float32)


def spacing_below(scalars: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each maximum's distance to the next float32 below it, (N,): less decodes to a tie."""
    top = scalars[:, 0]
    return top - np.nextafter(top, np.float32(-np.inf))


def shift_bound(logits: Logits, top_bits: int) -> NDArray[np.float64]:
    """Bound the error of rounding a row's maximum and adding it back, (N,)."""
    top, spread = top_and_spread(logits)
    bound: NDArray[np.float64] = spread * 2.0**-top_bits + 8 * (np.abs(top) + spread) * 2.0**-24
    return bound


def top_and_spread(logits: Logits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's maximum and its exact distance to the minimum, (N,)."""
    top = logits.max(axis=1).astype(np.float64)
    return top, top - logits.min(axis=1)


def to_float16(below: NDArray[np.float32], spacing: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round logits relative to their row's maximum, (N, K) <= 0, to float16.

    A value below 0 stays at least ``spacing`` (N,) below 0: closer, it would tie with the maximum.
    """
    least = -np.clip(spacing, 2.0**-24, 2.0**15).astype(np.float32)[:, None]
    above_floor = np.maximum(below, np.float32(FLOAT16_FLOOR))
    return np.where(below < 0, np.minimum(above_floor, least), np.float32(0)).astype(np.float16)


def float16_bound(logits: Logits) -> NDArray[np.float64]:
    """Bound the error of ``to_float16`` and of the maximum rounded for it, (N,)."""
    spread = top_and_spread(logits)[1]
    # Half a unit in the last place of the widest code (float16 has 11 significant bits), its
    # smallest step, and what lies past its range.
    half_ulp = spread * 2.0**-11 + 2.0**-23
    past = np.maximum(spread + FLOAT16_FLOOR, 0)
    return half_ulp + past + shift_bound(logits, FLOAT16_TOP_BITS)
