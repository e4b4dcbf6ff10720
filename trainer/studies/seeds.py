"""Figures of several seeds: mean, deviation, and whether a mean is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure of each seed, with mean and standard deviation (n - 1; None of one seed)."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = stdev(values) if len(values) > 1 else None
        return cls(values=tuple(values), mean=mean(values), deviation=deviation)

    @property
    def clear(self) -> bool:
        """Whether the mean is above 0 beyond chance: see ``beyond_chance``."""
        return self.deviation is not None and self.mean > beyond_chance(
            self.deviation, len(self.values)
        )


def beyond_chance(deviation: float, samples: int) -> float:
    """How far from 0 a mean of so many values lies by chance in one case of twenty.

    Student's t for two sides, 0.95: 4.3 standard errors of three values, 2.8 of five.
    """
    from scipy.stats import t  # takes a second

    return float(t.ppf(0.975, samples - 1)) * deviation / sqrt(samples)
