"""How a row of logits becomes arrays and back: one table of encode/decode pairs, NumPy only.

Losses do not change when a constant is added to all logits of a row, so an encoding may store a row
relative to its maximum; ``scalars`` (maximum, range) bring the absolute logits back.  Probabilities
are never stored: in fp16 they lose up to 30 % of the gradient at temperature 20.  This file does
not know shards, files or torch; a tensor is only made where one is asked for (``decode_tensor``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import UnknownName

if TYPE_CHECKING:
    from torch import Tensor

Logits = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A pair of pure functions over rows.

    ``layout(C)`` gives each array's dtype and its shape per row; ``encode`` maps float32 (N, C) to
    those arrays, ``decode`` maps them back to float32 (N, C), ``decode_tensor`` does the same on
    the device that holds the codes.  ``bound(logits)`` is the largest absolute error per row, (N,).
    """

    name: str
    layout: Callable[[int], dict[str, tuple[str, int]]]
    encode: Callable[[Logits], Arrays]
    decode: Callable[[Mapping[str, NDArray[Any]]], Logits]
    decode_tensor: Callable[[Mapping[str, Tensor]], Tensor]
    bound: Callable[[Logits], NDArray[np.float64]]

    def bytes_per_row(self, classes: int) -> int:
        """Bytes of one decoded-from-disk (uncompressed) row of codes."""
        return sum(np.dtype(kind).itemsize * width for kind, width in self.layout(classes).values())


def _row_scalars(logits: Logits) -> NDArray[np.float32]:
    top = logits.max(axis=1)
    return np.stack([top, top - logits.min(axis=1)], axis=1)


def _encode_float16(logits: Logits) -> Arrays:
    scalars = _row_scalars(logits)
    # Below -65504 a class has probability 0 in float64 at any temperature up to 80.
    shifted = np.maximum(logits - scalars[:, :1], np.float32(-65504))
    codes = shifted.astype(np.float16)
    # A runner-up so close that it rounds to 0 would tie with the maximum and could win the argmax.
    codes[(shifted < 0) & (codes == 0)] = -(2.0**-24)
    return {"codes": codes, "scalars": scalars}


def _decode_float16(arrays: Mapping[str, NDArray[Any]]) -> Logits:
    decoded: Logits = arrays["codes"].astype(np.float32) + arrays["scalars"][:, :1]
    return decoded


def _bound_float16(logits: Logits) -> NDArray[np.float64]:
    scalars = _row_scalars(logits).astype(np.float64)
    # Half a unit in the last place of the widest code (float16 has 11 significant bits), its
    # smallest step, two float32 roundings of the shift and its inverse, and what lies past
    # float16's range.
    half_ulp = scalars[:, 1] * 2.0**-11 + 2.0**-24
    rounding = 2 * (np.abs(scalars[:, 0]) + scalars[:, 1]) * 2.0**-24
    bound: NDArray[np.float64] = half_ulp + rounding + np.maximum(scalars[:, 1] - 65504, 0)
    return bound


FLOAT32 = Encoding(
    name="float32",
    layout=lambda classes: {"codes": ("<f4", classes)},
    encode=lambda logits: {"codes": logits},
    decode=lambda arrays: np.asarray(arrays["codes"], np.float32),
    decode_tensor=lambda arrays: arrays["codes"],
    bound=lambda logits: np.zeros(len(logits)),
)
"""Exact."""

FLOAT16 = Encoding(
    name="float16",
    layout=lambda classes: {"codes": ("<f2", classes), "scalars": ("<f4", 2)},
    encode=_encode_float16,
    decode=_decode_float16,
    decode_tensor=lambda arrays: arrays["codes"].float() + arrays["scalars"][:, :1],
    bound=_bound_float16,
)
"""Row relative to its maximum in float16: KL about 1e-7 nats, argmax exact."""

ENCODINGS: dict[str, Encoding] = {entry.name: entry for entry in (FLOAT32, FLOAT16)}


def encoding(name: str) -> Encoding:
    """Look an encoding up; UnknownName lists those that this version knows."""
    if name not in ENCODINGS:
        raise UnknownName.among("encoding", name, ENCODINGS)
    return ENCODINGS[name]


@dataclass(frozen=True)
class Rows:
    """Encoded rows of some samples, in the order asked for: each array is (N, …)."""

    encoding: Encoding
    arrays: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def logits(self) -> Logits:
        """Decode in NumPy: float32 (N, C)."""
        return self.encoding.decode(self.arrays)

    def tensor(self, device: Any = "cpu") -> Tensor:
        """Decode on ``device``; only the codes cross the bus.  float32 (N, C)."""
        import torch

        moved = {
            name: torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
            for name, array in self.arrays.items()
        }
        return self.encoding.decode_tensor(moved)
