"""A sweep's table: a row for each method and teacher, and which teacher taught best."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitstore.text import percent, table
from logitstore.trainer.studies.seeds import Gain, OverSeeds, paired

if TYPE_CHECKING:
    from logitstore.trainer.run.result import Result

BASELINE = "ce"
_SERIES = re.compile(r"\d+$")  # epoch-0005 and epoch-0030 are one teacher in time


@dataclass(frozen=True, kw_only=True)
class Row:
    """The students of one method and teacher; ``snapshot`` is None without a teacher.

    ``teacher_top1`` is on the store's labels.  ``last`` and ``best`` are the students' validation
    accuracies in their last and best epoch, ``gain`` is ``last`` less that of the plain student of
    the same seed, ``kd_error`` the share of training images on which they differ from the teacher.
    """

    method: str
    snapshot: str | None
    teacher_top1: float | None
    last: OverSeeds
    best: OverSeeds
    gain: Gain | None
    kd_error: OverSeeds | None
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The snapshot that taught a method best, by the mean accuracy of the last epoch.

    The last epoch chooses, because the best one was chosen on these very data.  ``lead`` is the
    gain over the last snapshot.
    """

    method: str
    best: str
    last: str
    lead: Gain
    sentence: str


def row_of(
    method: str,
    snapshot: str | None,
    teacher_top1: float | None,
    runs: Mapping[int, Result],
    base: Mapping[int, Result] | None,
) -> Row:
    """Return the row of finished runs by seed; ``base`` are the plain students' runs."""
    results = runs.values()
    last = tuple(result.metrics["val_accuracy"] for result in results)
    best = tuple(result.best["val_accuracy"] for result in results if result.best is not None)
    errors = [result.metrics.get("train_kd_error") for result in results]
    known = tuple(error for error in errors if error is not None)
    gain = None
    if base is not None and base is not runs:
        gain = paired(last, [base[seed].metrics["val_accuracy"] for seed in runs])
    return Row(
        method=method,
        snapshot=snapshot,
        teacher_top1=teacher_top1,
        last=OverSeeds(last),
        best=OverSeeds(best),
        gain=gain,
        kd_error=OverSeeds(known) if snapshot is not None and known else None,
        runs=tuple(str(result.run) for result in results),
    )


def find_best(rows: Sequence[Row], names: Sequence[str]) -> Iterator[Finding]:
    """Yield the best teacher of each method that had several; ``names`` are in their order.

    Of equal teachers the latest is the best.  An ensemble is never the last: it has no place in
    time.
    """
    single = [name for name in names if _SERIES.search(name)] or list(names)
    for method in dict.fromkeys(row.method for row in rows if row.snapshot is not None):
        by_teacher = {row.snapshot: row for row in rows if row.method == method}
        if len(by_teacher) < 2:
            continue
        best = max(reversed(names), key=lambda name: by_teacher[name].last.mean)
        last = single[-1]
        lead = paired(by_teacher[best].last.values, by_teacher[last].last.values)
        sentence = _sentence(method, by_teacher[best], last, lead)
        yield Finding(method=method, best=best, last=last, lead=lead, sentence=sentence)


def sweep_lines(rows: Sequence[Row], findings: Sequence[Finding]) -> list[str]:
    """Return the table, and a sentence for each method."""
    header = ["snapshot", "method", "teacher", "val, last epoch", "val, best epoch"]
    header += [f"gain over {BASELINE}", "KD error"]
    order = {name: i for i, name in enumerate(dict.fromkeys(row.snapshot for row in rows))}
    cells = [
        [
            row.snapshot or "-",
            row.method,
            percent(row.teacher_top1),
            _cell(row.last),
            _cell(row.best),
            _cell(row.gain),
            _cell(row.kd_error),
        ]
        for row in sorted(rows, key=lambda row: order[row.snapshot])
    ]
    return [*table(header, cells), *(finding.sentence for finding in findings)]


def _sentence(method: str, best: Row, last: str, lead: Gain) -> str:
    start = f"{method}: {best.snapshot} teaches best ({_cell(best.last)})"
    if best.snapshot == last:
        return f"{start}; it is the last one: no earlier teacher did better"
    in_time = _SERIES.sub("", best.snapshot or "") == _SERIES.sub("", last)
    doubt = f", which {lead.n} seed{'s' * (lead.n > 1)} cannot tell from chance"
    doubt = "" if lead.significant else doubt
    sentence = f"{start}, {_cell(lead)} over the last one, {last}{doubt}"
    if not in_time:
        return sentence
    return (
        f"{sentence}; that an earlier teacher may teach better is what Cho and Hariharan found "
        "(2019, arXiv:1910.01348)"
    )


def _cell(share: OverSeeds | None) -> str:
    return "-" if share is None else f"{share.cell(2, percent=True)} %"
