"""Encode every class of a row: exactly, in float16, or in 8 bits relative to the maximum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import InputError
from logitstore.format.encodings.base import (
    FLOAT16_TOP_BITS,
    MOST_FLOAT16,
    MOST_FLOAT32,
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
    shift_bound,
    spacing_below,
    to_float16,
    top_and_spread,
)

if TYPE_CHECKING:
    from torch import Tensor


_UINT8_TOP_BITS = 9
"""Bits of a maximum below its row's range, for codes in uint8."""


@dataclass(frozen=True, kw_only=True)
class Float32(Encoding):
    """Keeps every logit exactly."""

    name = "float32"

    @property
    def layout(self) -> Layout:
        return {"codes": ("<f4", self.classes)}

    def encode(self, logits: Logits, labels: Labels) -> Arrays:
        return {"codes": logits}

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Logits:
        return np.asarray(arrays["codes"], np.float32)

    def decode_tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["codes"]

    def fault(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, str] | None:
        return first_fault(arrays, {"codes": (MOST_FLOAT32, NOT_FINITE)})

    def bound(self, logits: Logits) -> NDArray[np.float64]:
        return np.zeros(len(logits))


@dataclass(frozen=True, kw_only=True)
class Float16(Encoding):
    """Keeps a row relative to its maximum in float16: KL about 1e-7 nats, argmax exact."""

    name = "float16"

    @property
    def layout(self) -> Layout:
        return {"codes": ("<f2", self.classes), "scalars": ("<f4", 2)}

    def encode(self, logits: Logits, labels: Labels) -> Arrays:
        arrays = self.empty(len(logits))
        for rows in blocks(len(logits), self.classes):
            block = logits[rows]
            scalars = arrays["scalars"][rows] = row_scalars(block, FLOAT16_TOP_BITS)
            below = block - block.max(axis=1, keepdims=True)
            arrays["codes"][rows] = to_float16(below, spacing_below(scalars))
        return arrays

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Logits:
        decoded: Logits = arrays["codes"].astype(np.float32)
        decoded += arrays["scalars"][:, :1]
        return decoded

    def decode_tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["codes"].float() + arrays["scalars"][:, :1]

    def fault(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, str] | None:
        limits = {"codes": (MOST_FLOAT16, NOT_FINITE), "scalars": scalar_limit()}
        return first_fault(arrays, limits)

    def bound(self, logits: Logits) -> NDArray[np.float64]:
        return float16_bound(logits)


@dataclass(frozen=True, kw_only=True)
class Uint8(Encoding):
    """Keeps the distance from the row's maximum, companded by a square root, in ``levels`` steps.

    logit = maximum - range · (code / (levels - 1))².  Steps are finest next to the maximum, where
    the probability is; measured on real logits, no other curve gives a smaller KL for its bytes
    (FORMAT.md, "Encodings").
    """

    name = "uint8"
    levels: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise InputError(f"encoding uint8 has 2 to 256 levels, not {self.levels}")

    @property
    def layout(self) -> Layout:
        return {"codes": ("|u1", self.classes), "scalars": ("<f4", 2)}

    def encode(self, logits: Logits, labels: Labels) -> Arrays:
        arrays = self.empty(len(logits))
        for rows in blocks(len(logits), self.classes):
            block = logits[rows]
            scalars = arrays["scalars"][rows] = row_scalars(block, _UINT8_TOP_BITS)
            arrays["codes"][rows] = self._codes(block, scalars)
        return arrays

    def _codes(self, logits: Logits, scalars: NDArray[np.float32]) -> NDArray[np.uint8]:
        below = logits.max(axis=1, keepdims=True) - logits
        # A range of 0 is that of a row whose distances are all 0.
        step = np.where(scalars[:, 1] > 0, self._step(scalars), np.float32(1))
        # The smallest code that float32 can tell from the maximum once it is decoded.
        least = np.ceil(np.sqrt(spacing_below(scalars) / step)).clip(1, self.levels - 1)
        lower = below > 0
        below *= 1 / step[:, None]
        np.rint(np.sqrt(below, out=below), out=below)
        codes: NDArray[np.uint8] = below.astype(np.uint8)
        np.maximum(codes, lower * least.astype(np.uint8)[:, None], out=codes)
        return codes

    def _step(self, scalars: NDArray[np.float32]) -> NDArray[np.float32]:
        return scalars[:, 1] / np.float32((self.levels - 1) ** 2)

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Logits:
        codes, scalars = arrays["codes"], arrays["scalars"]
        step, decoded = self._step(scalars)[:, None], np.empty(codes.shape, np.float32)
        for rows in blocks(len(codes), self.classes):
            block = decoded[rows]
            block[:] = codes[rows]
            block *= block
            block *= step[rows]
            np.subtract(scalars[rows, :1], block, out=block)
        return decoded

    def decode_tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        top, spread = arrays["scalars"][:, :1], arrays["scalars"][:, 1:]
        step = spread / float((self.levels - 1) ** 2)
        return arrays["codes"].float().square_().mul_(-step).add_(top)

    def fault(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, str] | None:
        beyond_levels = f"a code is beyond the encoding's {self.levels} levels"
        limits = {"codes": (self.levels - 1, beyond_levels), "scalars": scalar_limit()}
        return first_fault(arrays, limits)

    def bound(self, logits: Logits) -> NDArray[np.float64]:
        top, spread = top_and_spread(logits)
        # The range is rounded up by a sixteenth at most.  A code k stands for k² steps, so that the
        # last two are 2 levels - 3 apart; the second code may stand for less than a step.
        step = np.maximum(spread * 17 / 16, 2.0**-59) / (self.levels - 1) ** 2
        tie = 4 * (np.abs(top) + spread) * 2.0**-23
        bound: NDArray[np.float64] = step * (self.levels + 1) + tie
        return np.where(spread > 0, bound + shift_bound(logits, _UINT8_TOP_BITS), tie)
