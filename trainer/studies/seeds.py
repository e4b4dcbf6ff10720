"""One figure measured with several seeds: its mean, its deviation, and whether a gain is chance.

Everything that compares runs over seeds asks here: the demo, sweeps and recipes.  Nothing here
knows what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import mean, stdev
from typing import ClassVar, Literal

Verdict = Literal["shows", "reversed", "does not show", "cannot be judged"]


@dataclass(frozen=True)
class OverSeeds:
    """A figure of each seed; ``deviation`` is the standard deviation (n - 1), None of one seed."""

    values: tuple[float, ...]
    mean: float = field(init=False)
    deviation: float | None = field(init=False)

    _sign: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", mean(self.values))
        deviation = stdev(self.values) if self.n > 1 else None
        object.__setattr__(self, "deviation", deviation)

    @property
    def n(self) -> int:
        """Return the number of seeds."""
        return len(self.values)

    @property
    def standard_error(self) -> float | None:
        """Return the mean's standard error, None of one seed."""
        return None if self.deviation is None else self.deviation / sqrt(self.n)

    def cell(self, decimals: int, *, percent: bool = False) -> str:
        """Write mean ± standard deviation, such as 97.32 ± 0.21; of one seed the mean alone."""
        factor = 100 if percent else 1
        deviation = ""
        if self.deviation is not None:
            deviation = f" ± {factor * self.deviation:.{decimals}f}"
        return f"{factor * self.mean:{self._sign}.{decimals}f}{deviation}"


@dataclass(frozen=True)
class Gain(OverSeeds):
    """A difference between two runs of each seed; it is written with its sign."""

    _sign: ClassVar[str] = "+"

    @property
    def significant(self) -> bool:
        """Say whether the mean is above 0 by more than chance explains."""
        return self.verdict == "shows"

    @property
    def verdict(self) -> Verdict:
        """Judge the mean by Student's t-test for paired samples, two-sided, at the level 0.05.

        The least mean that counts is 4.3 standard errors of three seeds, 2.8 of five.
        """
        if self.standard_error is None:
            return "cannot be judged"
        from scipy.stats import t  # takes a second

        least = float(t.ppf(0.975, self.n - 1)) * self.standard_error
        if self.mean > least:
            return "shows"
        return "reversed" if self.mean < -least else "does not show"


def paired(after: Sequence[float], before: Sequence[float]) -> Gain:
    """Return the gain of ``after`` over ``before``, of which the values are of the same seeds."""
    return Gain(tuple(a - b for a, b in zip(after, before, strict=True)))
