"""A benchmark has two sides, which take turns, so that a noisy machine hits both.

A side is a call that does its work once and returns its figure in the benchmark's unit: seconds,
rows/s, B/row or MiB.  The ratio is always ours over theirs.  This file does not know what is
measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from shutil import which
from typing import Any, Literal

Side = Callable[[], float]
Call = Callable[[], object]

PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Folders of programs: nginx lies in /usr/sbin, which is not on everybody's PATH."""

TOLERANCE = 0.8
"""Share of a promise that a turn must reach: other work on a machine takes a fifth or so."""


class NotRun(Exception):
    """A benchmark cannot run on this machine; the message says why and what would help."""


@dataclass(frozen=True)
class Reach:
    """The target of a ratio."""

    sign: Literal["<=", ">="]
    value: float

    def met(self, ratio: float) -> bool:
        return ratio <= self.value if self.sign == "<=" else ratio >= self.value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:.2f}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One line of the table; ``sides`` is ``module.function`` of this package.

    The function is a context manager, called with the workplace and ``arguments``.  It sets
    everything up, checks that both sides do the same, and gives ``Sides``.  ``reach`` is promised,
    or the ratio of ``today`` where that is worse.
    """

    name: str
    what: str
    against: str
    unit: str
    reach: Reach | None
    sides: str
    arguments: tuple[Any, ...] = ()
    today: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sides:
    """``ours`` and ``theirs`` take turns ``repeats`` times; ``facts`` go to the report.

    A side may add to ``facts`` while it runs.  ``warm`` runs each side once before it counts.
    """

    ours: Side
    theirs: Side
    repeats: int
    facts: dict[str, Any] = field(default_factory=dict)
    warm: bool = True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a benchmark, or the reason that there is none; figures are medians."""

    benchmark: Benchmark
    state: Literal["run", "not run", "failed"]
    reason: str = ""
    turns: tuple[tuple[float, float], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in self.turns]

    @property
    def ratio(self) -> float | None:
        """Return the median of the turns' ratios; None if there are none."""
        return statistics.median(self.ratios) if self.turns else None

    @property
    def medians(self) -> list[float]:
        """Return the medians of ours and of theirs; nothing if the benchmark did not run."""
        return [statistics.median(side) for side in zip(*self.turns, strict=True)]

    @property
    def met(self) -> bool | None:
        """Say whether the ratio reaches its target; None if there is no ratio or no target."""
        reach = self.benchmark.reach
        return None if reach is None or self.ratio is None else reach.met(self.ratio)

    @property
    def broken(self) -> bool:
        """Say whether three of four turns miss what is promised by more than ``TOLERANCE``."""
        reach = self.benchmark.reach
        if reach is None or not self.turns:
            return False
        promise = reach.value if self.benchmark.today is None else self.benchmark.today
        limit = promise / TOLERANCE if reach.sign == "<=" else promise * TOLERANCE
        misses = sum(not Reach(reach.sign, limit).met(ratio) for ratio in self.ratios)
        return misses >= 0.75 * len(self.turns)


def take_turns(sides: Sides) -> tuple[tuple[float, float], ...]:
    """Run both sides in turns and return (ours, theirs) of each repeat."""
    if sides.warm:
        sides.ours()
        sides.theirs()
    turns = []
    for turn in range(sides.repeats):
        # Each goes first every other turn: what the first leaves in caches helps the second.
        order = (sides.ours, sides.theirs) if turn % 2 else (sides.theirs, sides.ours)
        figures = {side: side() for side in order}
        turns.append((figures[sides.ours], figures[sides.theirs]))
    return tuple(turns)


def seconds(run: Call, count: int = 1) -> Side:
    """Make a side that measures the seconds of ``run``, divided by ``count``."""

    def side() -> float:
        begun = time.perf_counter()
        run()
        return (time.perf_counter() - begun) / count

    return side


def per_second(amount: float, run: Call) -> Side:
    """Make a side that measures ``amount`` per second of ``run``."""
    spent = seconds(run)
    return lambda: amount / spent()


def program(name: str) -> str:
    """Return the path of a program that no Python package installs; NotRun if there is none."""
    path = which(name, path=PROGRAMS)
    if path is None:
        raise NotRun(f"{name} is not installed (apt-get install {name})")
    return path
