"""Interleaved timing: the sides of a ratio take turns, so that a noisy machine hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 7


@dataclass(frozen=True)
class Ratio:
    """One line of the table; ``reach`` is the target of the ratio of the median times."""

    what: str
    against: str
    ratio: float
    low: float
    high: float
    reach: str
    seconds: float


def compare(
    what: str,
    against: str,
    reach: str,
    left: Callable[[], object],
    right: Callable[[], object],
    *,
    inverse: bool = False,
    repeats: int = REPEATS,
) -> Ratio:
    """Time of ``left`` over time of ``right`` (``inverse``: the rates' ratio), turn by turn."""
    left()
    right()
    ratios, lefts = [], []
    for turn in range(repeats):
        # Each goes first every other turn: what the first leaves in caches helps the second.
        order = (left, right) if turn % 2 else (right, left)
        spent = {}
        for side in order:
            begun = time.perf_counter()
            side()
            spent[side] = time.perf_counter() - begun
        lefts.append(spent[left])
        ratios.append(spent[right] / spent[left] if inverse else spent[left] / spent[right])
    return Ratio(
        what,
        against,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        reach,
        statistics.median(lefts),
    )
