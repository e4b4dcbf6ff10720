"""Report long work: a bar with rate and ETA on a terminal, plain lines elsewhere.

Libraries take a ``Progress``; only the command line makes a visible one.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

from logitstore.text import printable, size


class Progress(Protocol):
    """Receives the reports of a long piece of work."""

    def start(self, task: str, total: int, unit: str) -> None:
        """Begin a piece of work of ``total`` units."""

    def advance(self, count: int) -> None:
        """Report that ``count`` more units are done."""

    def message(self, text: str) -> None:
        """Report something that deserves a line."""


class Silent:
    """Reports nothing."""

    def start(self, task: str, total: int, unit: str) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def message(self, text: str) -> None:
        pass


class Lines:
    """Prints plain lines on a stream, at most one every ``every`` seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 5.0) -> None:
        self._stream, self._every = stream or sys.stderr, every
        self._task, self._total, self._unit = "", 0, ""
        self._done, self._begun, self._reported = 0, 0.0, 0.0

    def start(self, task: str, total: int, unit: str) -> None:
        self._task, self._total, self._unit = task, total, unit
        self._done, self._begun = 0, time.monotonic()
        self._reported = self._begun

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._reported < self._every and self._done < self._total:
            return
        self._reported = now
        rate = self._done / max(now - self._begun, 1e-9)
        seconds = (self._total - self._done) / rate if rate else 0.0
        amounts = _amounts(self._done, self._total, rate, self._unit)
        self.message(f"{self._task}: {amounts}, ETA {seconds:.0f} s")

    def message(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)


def _amounts(done: float, total: float, rate: float, unit: str) -> str:
    """Return ``600 of 1,200 rows, 300 rows/s``, with bytes as sizes: ``1.5 KiB of 2.0 MiB``."""
    if unit == "bytes":
        return f"{size(done)} of {size(total)}, {size(rate)}/s"
    return f"{done:,.0f} of {total:,.0f} {unit}, {rate:,.0f} {unit}/s"


class Bar:
    """Shows a rich progress bar; ``close`` ends it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amounts]}, ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._begun, self._unit = 0.0, ""

    def start(self, task: str, total: int, unit: str) -> None:
        if self._task is not None:
            self._rich.remove_task(self._task)
        self._begun, self._unit = time.monotonic(), unit
        self._task = self._rich.add_task(printable(task), total=total, amounts="")
        self._rich.start()

    def advance(self, count: int) -> None:
        task = self._rich.tasks[-1]
        done = task.completed + count
        rate = done / max(time.monotonic() - self._begun, 1e-9)
        amounts = _amounts(done, task.total or 0, rate, self._unit)
        self._rich.update(self._task, advance=count, amounts=amounts)

    def message(self, text: str) -> None:
        self._rich.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        self._rich.stop()
