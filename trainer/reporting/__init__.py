"""Write runs side by side as one self-contained HTML page: ``report``.

``gather`` reads the runs' folders, ``findings`` measures the finished ones, ``analysis`` computes,
``figures`` draws in the colours of ``style``, ``tables`` and ``page`` write.  Libraries that only a
report needs are imported when one is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitstore.errors import InputError
from logitstore.progress import Progress, Silent
from logitstore.storage.durable import refuse_place, write_file

_BEGINS = b"<!doctype html"


@dataclass(frozen=True)
class Report:
    """The path of a written report, and the figures of its tables, ready for JSON."""

    path: Path
    figures: dict[str, Any]


def report(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    data: str | None = None,
    store: str | None = None,
    snapshot: str | None = None,
    title: str | None = None,
    token: str | None = None,
    device: str | None = None,
    trust_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a page about training runs, finished or not; replace the page that was at ``out``.

    Diagrams are drawn on ``data``, by default on the runs' test data, or else on their validation
    data; an unfinished run has only learning curves.  ``store`` and ``snapshot`` are a teacher's
    logits of ``data``, by default those of each run's own store, if need be of its training data.
    ``trust_run``: run the code that a run's file names, and ask the servers that it names, without
    a token; else the former is refused and the latter are left out.
    The same runs give the same bytes.  Raises NotFound, InputError or MismatchError, before
    anything is measured, if something does not fit together.

    >>> report(["runs/ce", "runs/kd"], "report.html").path    # doctest: +SKIP
    PosixPath('report.html')
    """
    from logitstore.trainer.config.checks import needs_store
    from logitstore.trainer.reporting.findings import TeacherRequest, find_all
    from logitstore.trainer.reporting.gather import chosen_data, read_runs
    from logitstore.trainer.reporting.page import render
    from logitstore.trainer.reporting.tables import summary

    path = _place(Path(out))
    if snapshot is not None and store is None:
        raise needs_store("snapshot")
    records = read_runs(runs)
    chosen = chosen_data(records, data)
    request = TeacherRequest(store=store, snapshot=snapshot, token=token)
    progress = progress or Silent()
    findings = (
        []
        if chosen is None
        else find_all(records, chosen, request, device, progress, trust_run=trust_run)
    )
    text = render(records, chosen, findings, title or _title([record.name for record in records]))
    write_file(path, text.encode())
    return Report(path, summary(records, chosen, findings))


def _place(path: Path) -> Path:
    refuse_place(path)
    if path.is_file():
        with path.open("rb") as file:
            begins = file.read(len(_BEGINS)).lower()
        if begins != _BEGINS:
            raise InputError(
                f"--out {path}: another file, and no page of a report, is there: give another name"
            )
    return path


def _title(names: Sequence[str]) -> str:
    listed = ", ".join(names[:4])
    return f"Report: {listed}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
