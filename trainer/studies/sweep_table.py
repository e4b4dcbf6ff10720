"""A sweep's table: a row for each method and teacher, and which teacher taught best."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from logitstore.text import percent, table
from logitstore.trainer.run.result import Result
from logitstore.trainer.studies.seeds import Gain, OverSeeds, paired

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
    last: OverSeeds
    best: OverSeeds
    gain: Gain | None
    kd_error: OverSeeds | None
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Which snapshot taught a method best, by the last epoch's mean; ``lead`` is over the last one.

    The last epoch chooses, not the best one: that was chosen on these very data.
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
    """The figures of finished runs by seed; ``base`` are the plain students'."""
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
        lead = paired(taught[best].last.values, taught[last].last.values)
        sentence = _sentence(method, taught[best], last, lead)
        yield Finding(method=method, best=best, last=last, lead=lead, sentence=sentence)


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
