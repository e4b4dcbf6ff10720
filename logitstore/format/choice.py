"""Choose the encoding of a snapshot: the one named, or the smallest within a bound on its loss.

Candidates are measured on some rows; every row is measured again while it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from logitstore.errors import InputError
from logitstore.format.cards import MAX_CLASSES
from logitstore.format.encodings.base import Encoding, Labels, Logits
from logitstore.format.encodings.dense import Uint8
from logitstore.format.encodings.table import ENCODINGS, encoding, parse_encoding, spelled
from logitstore.format.encodings.topk import TopK
from logitstore.format.fidelity import encoded
from logitstore.format.sizes import row_bytes
from logitstore.values import RowDigests

AUTO = "auto"
"""The text that asks for the smallest encoding within the bound."""

MAX_KL, AT_TEMPERATURE = 1e-4, 4.0
"""The bound on the mean KL, in nats, and the temperature it holds at, unless others are named."""

SAMPLE_ROWS = 1024
"""Rows that the candidates are measured on, at most."""

_ALWAYS_AT = (1.0, 4.0)
"""Temperatures at which every snapshot is measured."""

_SAMPLED = 0.97
"""Share of the bound that ``auto`` aims at: the mean over all rows may exceed the sample's."""

_LEVELS, _TOPK = (192, 160, 128, 96, 64), (10, 30, 100)
"""Levels of uint8, and numbers of classes of topk, that are compared."""

_UINT8_CLASSES = range(33, 4097)
"""Numbers of classes whose default encoding is uint8."""

Pair = tuple[int, int]
"""A row: (view, sample)."""


@dataclass(frozen=True, kw_only=True)
class EncodingRequest:
    """Holds what a user requests of an encoding.

    ``text`` is ``auto``, what ``parse_encoding`` reads, or None: float16 up to 32 and beyond 4,096
    classes, else uint8.  At most ``max_kl`` nats of mean KL(teacher || decoded) may be lost at
    ``at_temperature``; None is 1e-4 at T=4 for ``auto``, and no bound for an encoding that is
    named.  topk is made for T=1: at any other temperature the bound of 1e-4 holds for it, too.
    ``row_digests`` says whether each row gets a digest.  InputError if these contradict each other.
    """

    text: str | None = None
    max_kl: float | None = None
    at_temperature: float | None = None
    row_digests: RowDigests = "auto"

    def __post_init__(self) -> None:
        if self.text not in (None, AUTO):
            parse_encoding(self.text, MAX_CLASSES)
        if self.max_kl is not None and not 0 <= self.max_kl < np.inf:
            raise InputError(f"--max-kl must be a number of nats from 0 on, not {self.max_kl}")
        if self.at_temperature is not None and not 0 < self.at_temperature <= 1000:
            raise InputError(
                f"--at-temperature must be above 0 and at most 1000, not {self.at_temperature}"
            )

    @property
    def temperature(self) -> float:
        """The temperature at which the bound holds."""
        return self.at_temperature or (1.0 if self._is_topk else AT_TEMPERATURE)

    @property
    def bound(self) -> float | None:
        """The largest mean KL, in nats; None where there is no bound."""
        bounded = self.text == AUTO or (self._is_topk and self.temperature != 1)
        return MAX_KL if bounded and self.max_kl is None else self.max_kl

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures at which the finished snapshot's fidelity is measured."""
        return tuple(sorted({*_ALWAYS_AT, self.temperature}))

    @property
    def _is_topk(self) -> bool:
        return self.text is not None and self.text.partition(":")[0] == TopK.name

    def unmeasured(self, classes: int) -> Encoding:
        """Return the encoding, as far as it is known without looking at rows."""
        if self.text in (None, AUTO):
            return default_encoding(classes)
        return parse_encoding(self.text, classes)


def sample_pairs(samples: int, views: int, most: int) -> list[Pair]:
    """Return at most ``most`` different pairs, evenly spaced over samples, in turn over the views.

    Not the first ones: many datasets come in the order of their classes.
    """
    count = min(most, samples * views)
    return [(i % views, i * samples // count) for i in range(count)]


def default_encoding(classes: int) -> Encoding:
    """Return the encoding that rows of so many classes get if no other is requested."""
    return encoding("uint8" if classes in _UINT8_CLASSES else "float16", classes)


def candidates(classes: int) -> list[Encoding]:
    """Return what is compared: every encoding, in several sizes where it has a parameter."""
    texts = [
        *(name for name in ENCODINGS if name != TopK.name),
        *(f"uint8:{levels}" for levels in _LEVELS),
        *(f"topk:{k}" for k in _TOPK if k <= classes // 4),
    ]
    return [parse_encoding(text, classes) for text in texts]


@dataclass(frozen=True, kw_only=True)
class EncodingFigures:
    """Says what an encoding does to some rows: bytes per row, mean KL in nats by temperature."""

    encoding: Encoding
    bytes_per_row: float
    kl: Mapping[float, float]

    def __str__(self) -> str:
        lost = ", ".join(f"{kl:.2g} nats at T={t:g}" for t, kl in self.kl.items())
        return f"{spelled(self.encoding)} ({self.bytes_per_row:.1f} bytes per row, {lost})"


def measure(
    entry: Encoding, logits: Sequence[Logits], labels: Labels, temperatures: Sequence[float]
) -> EncodingFigures:
    """Measure an encoding on the same rows of some teachers: mean bytes, and the worst KL."""
    sizes, losses = [], []
    for rows in logits:
        arrays, fidelity = encoded(entry, rows, labels, temperatures)
        sizes.append(row_bytes(entry, arrays))
        losses.append([divergence.mean for divergence in fidelity.divergence])
    worst = dict(zip(temperatures, np.max(losses, axis=0).tolist(), strict=True))
    return EncodingFigures(encoding=entry, bytes_per_row=float(np.mean(sizes)), kl=worst)


def _by_levels(full_kl: float, bound: float, classes: int) -> Iterator[Encoding]:
    """Yield uint8 from as few levels on as the bound allows: the KL goes with (levels - 1)⁻²."""
    if 0 < full_kl <= bound:
        fewest = 1 + int(np.ceil(255 * np.sqrt(full_kl / bound)))
        for levels in range(max(2, fewest), 256):
            yield Uint8(classes=classes, levels=levels)


def choose_encoding(
    request: EncodingRequest, logits: Sequence[Logits], labels: Labels, source: str
) -> Encoding:
    """Choose the encoding for rows like these: float32 (n, C) of each teacher, and labels (n,).

    ``auto`` takes the smallest candidate within 97 % of the bound.  InputError if the one
    that was named is not within it; the message has the figures and the smallest that would do.
    """
    bound, temperature, classes = request.bound, request.temperature, logits[0].shape[1]
    if bound is None:
        return request.unmeasured(classes)

    def measured(entry: Encoding) -> EncodingFigures:
        return measure(entry, logits, labels, request.temperatures)

    if request.text != AUTO:
        named = measured(request.unmeasured(classes))
        if named.kl[temperature] <= bound:
            return named.encoding
    aim = _SAMPLED * bound

    def usable(figures: EncodingFigures) -> bool:
        return figures.kl[temperature] <= aim

    compared = {entry: measured(entry) for entry in candidates(classes)}
    full = compared[Uint8(classes=classes)]
    fewer_levels = map(measured, _by_levels(full.kl[temperature], aim, classes))
    all_figures = [*compared.values(), next(filter(usable, fewer_levels), full)]
    # float32 loses nothing, so there is always one.
    smallest = min(filter(usable, all_figures), key=lambda figures: figures.bytes_per_row)
    if request.text == AUTO:
        return smallest.encoding
    raise InputError(
        f"{named} loses more than the {bound:.2g} nats at T={temperature:g} that are allowed, "
        f"measured on {len(labels):,} rows of {source}; the smallest within it is {smallest}: use "
        f"--encoding {spelled(smallest.encoding)}, or a larger --max-kl"
    )
