"""Make a report's tables of settings and figures, as text for the page and as JSON."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from logitstore.text import figure, percent, size
from logitstore.trainer.config.settings import EXECUTION
from logitstore.trainer.methods.table import hyper_parameter_types
from logitstore.trainer.reporting.findings import Findings
from logitstore.trainer.reporting.gather import ReportData, RunRecord

Cells = tuple[str, ...]
Rows = list[tuple[str, Cells]]
OFF = "-"
_HIDDEN = EXECUTION - {"store", "device", "memory_limit", "recompute"}
_NEXT = ("student", "store", "snapshot", "root", "data", "val", "test", "epochs", "seed")
_FIRST = ("method", *hyper_parameter_types(), *_NEXT)


@dataclass(frozen=True)
class Column:
    """A figure's column: key, heading, unit, and whether more is better (None: neither)."""

    group: str
    key: str
    heading: str
    unit: str
    more_is_better: bool | None = None

    def write(self, value: float) -> str:
        """Return a figure in the column's unit."""
        scale = {"%": 100, "‰": 1000}.get(self.unit)
        return f"{value:.4f}" if scale is None else f"{scale * value:.2f}"


PLAIN, TEACHER, FITTED = "", "against the teacher", "after one fitted temperature"

COLUMNS = (
    Column(PLAIN, "top1", "top-1", "%", True),
    Column(PLAIN, "top5", "top-5", "%", True),
    Column(PLAIN, "nll", "NLL", "nats", False),
    Column(PLAIN, "ece10", "ECE-10", "%", False),
    Column(PLAIN, "ece15", "ECE-15", "%", False),
    Column(PLAIN, "aurc", "AURC", "‰", False),
    Column(PLAIN, "eaurc", "E-AURC", "‰", False),
    Column(TEACHER, "kd_error", "KD error", "%"),
    Column(TEACHER, "agreement", "agree", "%"),
    Column(TEACHER, "kd_loss", "KD loss", "nats"),
    Column(FITTED, "fitted_temperature", "T", ""),
    Column(FITTED, "nll_fitted", "NLL", "nats", False),
    Column(FITTED, "ece10_fitted", "ECE-10", "%", False),
    Column(FITTED, "ece15_fitted", "ECE-15", "%", False),
)


def run_tables(
    runs: Sequence[RunRecord],
) -> tuple[list[tuple[str, Rows]], list[tuple[str, str]]]:
    """Return titles with rows, the outcome and settings that differ, and the shared settings.

    A row is a name, then a cell for each run.
    """
    columns = [settings(run) for run in runs]
    names = [name for name in _FIRST if any(name in column for column in columns)]
    names += sorted({name for column in columns for name in column} - set(names))
    rows = [(name, tuple(_setting(name, column.get(name)) for column in columns)) for name in names]
    differing = [row for row in rows if len(set(row[1])) > 1]
    shared = [(name, cells[0]) for name, cells in rows if len(set(cells)) == 1]
    return [("Outcome", _outcome(runs)), ("Settings that differ", differing)], shared


def settings(run: RunRecord) -> dict[str, Any]:
    """Return all that decided the run's result, hyper-parameters and teacher's root included."""
    document = tomllib.loads(run.config.to_toml())
    values = {name: value for name, value in document.items() if name not in _HIDDEN}
    if run.inputs is not None and run.inputs.root is not None:
        values["root"] = run.inputs.root
    return values


def figure_table(
    runs: Sequence[RunRecord], findings: Sequence[Findings]
) -> tuple[list[Column], list[dict[str, Any]]]:
    """Return the columns that some run has, and a row for each run's last and best epoch.

    A row has ``run`` (number), ``weights``, ``cells``, and ``best``: which of the cells are bold.
    """
    entries = [
        (finding.run, weights, figures)
        for finding in findings
        for weights, figures in finding.figures.items()
    ]
    columns = [column for column in COLUMNS if any(column.key in each for *_, each in entries)]
    written = [tuple(_cell(column, each) for column in columns) for *_, each in entries]
    tops = [_top(column, [each for *_, each in entries]) for column in columns]
    rows = [
        {
            "run": number,
            "weights": _epoch(runs[number], weights),
            "cells": cells,
            "best": [cell == top for cell, top in zip(cells, tops, strict=True)],
        }
        for (number, weights, _), cells in zip(entries, written, strict=True)
    ]
    return columns, rows


def _outcome(runs: Sequence[RunRecord]) -> Rows:
    rows: list[tuple[str, Callable[[RunRecord], str | None]]] = [
        ("epochs done", lambda run: f"{len(run.history)} of {run.config.epochs}"),
        ("best epoch", lambda run: None if run.best_epoch is None else str(run.best_epoch)),
        ("validation accuracy, last", lambda run: _figure(run, "val_accuracy", -1)),
        ("validation accuracy, best", lambda run: _figure(run, "val_accuracy", run.best_epoch)),
        ("training accuracy, last", lambda run: _figure(run, "train_accuracy", -1)),
        ("training KD error, last", lambda run: _figure(run, "train_kd_error", -1)),
        ("training loss, last", lambda run: _figure(run, "loss", -1, lambda v: f"{v:.4f} nats")),
        ("images/s (median)", _rate),
        ("peak memory", lambda run: size(max(line["peak_memory"] for line in run.history))),
        ("time in epochs", _time),
    ]
    written = [(name, [ask(run) if run.history else None for run in runs]) for name, ask in rows]
    return [(name, tuple(cell or OFF for cell in cells)) for name, cells in written if any(cells)]


def _figure(
    run: RunRecord, key: str, epoch: int | None, write: Callable[[float], str] = percent
) -> str | None:
    """Return a figure at an epoch: 1 is the first, -1 the last."""
    if epoch is None:
        return None
    value = run.history[epoch if epoch < 0 else epoch - 1].get(key)
    return None if value is None else write(value)


def _rate(run: RunRecord) -> str:
    return f"{median(line['images_per_second'] for line in run.history):,.0f}"


def _time(run: RunRecord) -> str:
    seconds = sum(line["seconds"] for line in run.history)
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"


def _epoch(run: RunRecord, weights: str) -> str:
    if weights == "best":
        return f"best, {run.best_epoch}"
    also = " and best" if run.best_epoch == len(run.history) else ""
    return f"last{also}, {len(run.history)}"


def _setting(name: str, value: Any) -> str:
    if value is None:
        return OFF
    if name == "root":
        return f"{value[:12]}…"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or OFF
    return figure(value)


def _cell(column: Column, figures: Mapping[str, float]) -> str:
    return column.write(figures[column.key]) if column.key in figures else OFF


def _top(column: Column, entries: Sequence[Mapping[str, float]]) -> str | None:
    """Return the best of several values as written, None where none is better than another."""
    values = [each[column.key] for each in entries if column.key in each]
    if column.more_is_better is None or len(values) < 2 or len(set(values)) == 1:
        return None
    return column.write(max(values) if column.more_is_better else min(values))


def summary(
    runs: Sequence[RunRecord], data: ReportData | None, findings: Sequence[Findings]
) -> dict[str, Any]:
    """Return the tables' figures for JSON, unrounded; shares are in [0, 1]."""
    by_run = {finding.run: finding for finding in findings}
    return {
        "data": None if data is None else str(data),
        "runs": [
            {
                "run": str(run.path),
                "finished": run.result is not None,
                "epochs": len(run.history),
                "best_epoch": run.best_epoch,
                "settings": settings(run),
                "last_epoch": dict(run.history[-1]) if run.history else None,
                **_measured(by_run.get(run.number)),
            }
            for run in runs
        ],
    }


def _measured(finding: Findings | None) -> dict[str, Any]:
    if finding is None:
        return {"figures": None}
    compared = finding.compared
    shares = zip(finding.class_accuracy.tolist(), finding.class_count.tolist(), strict=True)
    return {
        "figures": finding.figures,
        "class_accuracy": [share if count else None for share, count in shares],
        "class_samples": finding.class_count.tolist(),
        "correlation_difference": None if isinstance(compared, str) else compared.mean,
    }
