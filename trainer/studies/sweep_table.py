"""What a sweep found: a line for each teacher and method, and which teacher taught best."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from logitstore.text import percent, table
from logitstore.trainer.run.result import Result
from logitstore.trainer.studies.seeds import Spread

BASELINE = "ce"


_SERIES = re.compile(r"\d+$")  # epoch-0005 and epoch-0030 are one teacher in time


@dataclass(frozen=True, kw_only=True)
class Row:
    """The students of one method and teacher; ``snapshot`` None: without one.

    ``teacher_top1`` is on the store's labels.  ``last`` and ``best`` are the students' validation
    accuracies in their last and best epoch, ``gain`` is ``last`` less that of the plain student of
    the same seed, ``kd_error`` the share of training images answered otherwise than by the teacher.
    """

    method: str
    snapshot: str | None
    teacher_top1: float | None
    last: Spread
    best: Spread
    gain: Spread | None
    kd_error: Spread | None
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Which snapshot taught a method best, by the last epoch's mean; ``lead`` is over the last one.

    The last epoch chooses, not the best one: that was chosen on these very data.
    """

    method: str
    best: str
    last: str
    lead: Spread
    sentence: str


def row_of(
    method: str,
    snapshot: str | None,
    teacher_top1: float | None,
    runs: Mapping[int, Result],
    base: Mapping[int, Result] | None,
) -> Row:
    """The figures of finished runs by seed; ``base`` are the plain students'."""
    last = [result.metrics["val_accuracy"] for result in runs.values()]
    best = [result.best["val_accuracy"] for result in runs.values() if result.best is not None]
    errors = [result.metrics.get("train_kd_error") for result in runs.values()]
    gain = None
    if base is not None and base is not runs:
        gain = Spread.of(
            [
                result.metrics["val_accuracy"] - base[seed].metrics["val_accuracy"]
                for seed, result in runs.items()
            ]
        )
    known = [error for error in errors if error is not None]
    return Row(
        method=method,
        snapshot=snapshot,
        teacher_top1=teacher_top1,
        last=Spread.of(last),
        best=Spread.of(best),
        gain=gain,
        kd_error=Spread.of(known) if snapshot is not None and known else None,
        runs=tuple(str(result.run) for result in runs.values()),
    )


def find_best(rows: Sequence[Row], names: Sequence[str]) -> Iterator[Finding]:
    """For each method with a choice of teachers the best one; ``names`` are in their order.

    Of equal ones the latest.  The last one is the last snapshot: an ensemble has no place in time.
    """
    single = [name for name in names if _SERIES.search(name)] or list(names)
    for method in dict.fromkeys(row.method for row in rows if row.snapshot is not None):
        taught = {row.snapshot: row for row in rows if row.method == method}
        if len(taught) < 2:
            continue
        best = max(reversed(names), key=lambda name: taught[name].last.mean)
        last = single[-1]
        pairs = zip(taught[best].last.values, taught[last].last.values, strict=True)
        lead = Spread.of([first - second for first, second in pairs])
        says = _sentence(method, taught[best], last, lead)
        yield Finding(method=method, best=best, last=last, lead=lead, sentence=says)


def sweep_lines(rows: Sequence[Row], findings: Sequence[Finding]) -> list[str]:
    """The table, and a sentence for each method."""
    header = ["snapshot", "method", "teacher", "val, last epoch", "val, best epoch"]
    header += [f"gain over {BASELINE}", "KD error"]
    order = {name: i for i, name in enumerate(dict.fromkeys(row.snapshot for row in rows))}
    cells = [
        [
            row.snapshot or "-",
            row.method,
            percent(row.teacher_top1),
            _shown(row.last),
            _shown(row.best),
            _shown(row.gain, "+"),
            _shown(row.kd_error),
        ]
        for row in sorted(rows, key=lambda row: order[row.snapshot])
    ]
    return [*table(header, cells), *(finding.sentence for finding in findings)]


def _sentence(method: str, best: Row, last: str, lead: Spread) -> str:
    begun = f"{method}: {best.snapshot} teaches best ({_shown(best.last)})"
    if best.snapshot == last:
        return f"{begun}; it is the last one: no earlier teacher did better"
    seeds = len(lead.values)
    in_time = _SERIES.sub("", best.snapshot or "") == _SERIES.sub("", last)
    doubt = "" if lead.clear else f", which {seeds} seed{'s' * (seeds > 1)} cannot tell from chance"
    found = f"{begun}, {_shown(lead, '+')} over the last one, {last}{doubt}"
    if not in_time:
        return found
    return (
        f"{found}; that an earlier teacher may teach better is what Cho and Hariharan found (2019, "
        "arXiv:1910.01348)"
    )


def _shown(figure: Spread | None, sign: str = "") -> str:
    """In percent: 97.32 ± 0.21 %."""
    if figure is None:
        return "-"
    deviation = "" if figure.deviation is None else f" ± {100 * figure.deviation:.2f}"
    return f"{100 * figure.mean:{sign}.2f}{deviation} %"
