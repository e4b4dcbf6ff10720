"""Mixup and CutMix as plans: which samples are blended, by how much and where.

A plan follows from (seed, view, sample) through a hash alone: the same on every machine and
version, in any order, in any process, without state and without an array as long as the dataset.
It says nothing of pixels, so that networks of different input sizes see the same mix; ``blend``
applies it in integers, so that the mixed view is the same bits everywhere.

Mixup: Zhang et al. 2017, arXiv:1710.09412.  CutMix: Yun et al. 2019, arXiv:1905.04899.  Both draw
the partners from a shuffled batch; a permutation of the whole dataset depends on no batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import count
from math import isfinite, isqrt, sqrt
from struct import unpack
from typing import NamedTuple

import torch
from torch import Tensor

from logitstore.errors import InputError

KINDS = ("cutmix", "mixup")
"""The kinds of mixing that ``--mix`` takes."""

MAX_ALPHA = 4.0
"""The largest alpha of a Beta(alpha, alpha): beyond it, drawing takes long."""

_EXAMPLE = "mixup:0.2, cutmix:1.0, or mixup:0.8,cutmix:1.0"

_ROUNDS = 8
"""Rounds of the permutation; an even number, as the halves' sizes swap in each.

Four are enough for large domains; over 60,000 permutations of 10 samples, a chi-square test still
notices 6 and does not notice 8.
"""

_GRID = 1 << 16
"""Steps in which weights and boxes are rounded: equal on every machine."""


class MixPlan(NamedTuple):
    """The plan by which one sample is mixed in one view.

    ``weight`` is its own share of the image and of the label; ``partner`` has the rest.  ``box`` is
    (left, top, right, bottom) in shares of width and height: CutMix's, None for Mixup.
    """

    partner: int
    weight: float
    box: tuple[float, float, float, float] | None


def parse_mix(text: str) -> dict[str, float]:
    """Parse ``mixup:0.2``, ``cutmix:1.0`` or both with a comma between: return alpha by kind."""
    spec: dict[str, float] = {}
    for part in text.split(","):
        kind, _, alpha = (word.strip() for word in part.partition(":"))
        if kind in spec:
            raise InputError(f"--mix {text!r}: {kind} is given twice")
        try:
            spec[kind] = float(alpha)
        except ValueError:
            raise InputError(f"--mix {text!r}: expected KIND:ALPHA such as {_EXAMPLE}") from None
    return check_mix(spec, f"--mix {text!r}")


def check_mix(spec: Mapping[str, float], where: str = "mix") -> dict[str, float]:
    """Return the spec if it can be used; InputError names ``where`` it came from.

    A store's card cannot be trusted: a huge alpha would draw for ever.
    """
    if not spec:
        raise InputError(f"{where}: no kind of mixing is named: expected {_EXAMPLE}")
    for kind, alpha in spec.items():
        if kind not in KINDS:
            raise InputError(f"{where}: unknown kind {kind!r}: expected {' or '.join(KINDS)}")
        if not (isfinite(alpha) and 0 < alpha <= MAX_ALPHA):
            raise InputError(
                f"{where}: alpha {alpha} of {kind} must be above 0 and at most {MAX_ALPHA:g}"
            )
    return {kind: float(spec[kind]) for kind in sorted(spec)}


class Mix:
    """The plans of ``n`` samples in every view.

    ``spec`` is alpha by kind; with two kinds, each (sample, view) takes either with equal chance.
    In each view every sample is the partner of exactly one; one that is its own partner stays
    unmixed.  Raises InputError for a spec that cannot be used.
    """

    def __init__(self, spec: Mapping[str, float], seed: int, n: int) -> None:
        self.spec = check_mix(spec)
        if n < 1:
            raise InputError(f"mix: there must be samples to mix, not {n}")
        self.seed, self.n = seed, n
        self._kinds = list(self.spec)
        # The smallest near-square grid that holds n cells.
        self._rows = isqrt(n - 1) + 1
        self._columns = -(-n // self._rows)

    def plan(self, sample: int, view: int) -> MixPlan:
        """Return how this sample is mixed in this view; InputError for a sample that is not there.

        It takes tens of microseconds, whatever ``n`` is.
        """
        if not 0 <= sample < self.n:
            raise InputError(f"sample {sample} is not one of the {self.n} that are mixed")
        state = blake2b(f"logitstore mix {self.seed} {view}".encode())
        partner = self._partner(state, sample)
        if partner == sample:
            return MixPlan(partner, 1.0, None)
        draws = _uniforms(state, sample)
        kind = self._kinds[int(next(draws) * len(self._kinds))]
        share = _beta(self.spec[kind], draws)
        if kind == "mixup":
            return MixPlan(partner, share, None)
        box = _box(sqrt(1 - share), next(draws), next(draws))
        left, top, right, bottom = box
        return MixPlan(partner, 1 - (right - left) * (bottom - top), box)

    def _partner(self, state: blake2b, sample: int) -> int:
        """Return the image of ``sample`` under the view's permutation of 0..n-1.

        A Feistel network over rows x columns cells, applied again while it leads out of 0..n-1
        (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", methods 2 and 3).
        """
        cell = sample
        while True:
            sizes = self._rows, self._columns
            left, right = divmod(cell, self._columns)
            for turn in range(_ROUNDS):
                scrambled = int.from_bytes(_digest(state, f" {turn} {right}"), "little")
                left, right = right, (left + scrambled) % sizes[turn % 2]
            cell = left * self._columns + right
            if cell < self.n:
                return cell


def blend(image: Tensor, partner: Tensor, plan: MixPlan) -> Tensor:
    """Mix two views as planned: uint8 (C, H, W) of both -> uint8 (C, H, W), the same everywhere.

    Mixup rounds to the nearest value, halves up; CutMix pastes the partner's box, its edges rounded
    to whole pixels.  InputError if the shapes differ.
    """
    if image.shape != partner.shape:
        raise InputError(
            f"images of shape {tuple(image.shape)} and {tuple(partner.shape)} cannot be mixed: "
            "give --size, or a --view-spec that crops or resizes"
        )
    if plan.box is None:
        weight = round(plan.weight * _GRID)
        mixed = image.int().mul_(weight).add_(partner.int(), alpha=_GRID - weight)
        return (mixed.add_(_GRID // 2) >> 16).to(torch.uint8)
    height, width = image.shape[-2:]
    left, right = (round(edge * width) for edge in plan.box[0::2])
    top, bottom = (round(edge * height) for edge in plan.box[1::2])
    pasted = image.clone()
    pasted[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
    return pasted


def _digest(state: blake2b, text: str) -> bytes:
    """Return 64 bytes that depend on the state and the text."""
    branch = state.copy()
    branch.update(text.encode())
    return branch.digest()


def _uniforms(state: blake2b, sample: int) -> Iterator[float]:
    """Yield numbers strictly between 0 and 1, in steps of 2**-52, without end."""
    for block in count():
        for word in unpack("<8Q", _digest(state, f" draw {sample} {block}")):
            yield ((word >> 12) + 0.5) * 2.0**-52


def _beta(alpha: float, draws: Iterator[float]) -> float:
    """Draw from Beta(alpha, alpha) (Joehnk 1964, Metrika 8), in steps of 2**-16.

    The steps hide the last bit of ``pow``, in which mathematical libraries differ.
    """
    power = 1 / alpha
    while True:
        u, v = next(draws), next(draws)
        if u**power + v**power <= 1:
            # u**p / (u**p + v**p), from the ratio: both powers may underflow to 0.
            ratio = (min(u, v) / max(u, v)) ** power
            share = 1 / (1 + ratio) if u > v else ratio / (1 + ratio)
            return _snap(share)


def _box(side: float, x: float, y: float) -> tuple[float, float, float, float]:
    """Return the square of relative ``side`` around (x, y), clipped, in steps of 2**-16."""
    half = side / 2
    return (
        _snap(max(x - half, 0.0)),
        _snap(max(y - half, 0.0)),
        _snap(min(x + half, 1.0)),
        _snap(min(y + half, 1.0)),
    )


def _snap(value: float) -> float:
    return round(value * _GRID) / _GRID
