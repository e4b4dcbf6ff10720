"""Write findings as one HTML page, without scripts and with nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from logitstore.trainer.reporting import analysis, figures, style, tables
from logitstore.trainer.reporting.findings import BINS, Comparison, Findings
from logitstore.trainer.reporting.gather import ReportData, RunRecord
from logitstore.version import __version__

_CURVES = (
    ("train_accuracy", "Training accuracy", "accuracy (%)", 100),
    ("val_accuracy", "Validation accuracy", "accuracy (%)", 100),
    ("val_nll", "Validation NLL", "NLL (nats)", 1),
    ("val_ece", "Validation ECE, 15 bins", "ECE (%)", 100),
    ("train_kd_error", "Training KD error", "KD error (%)", 100),
)

_TERM = "loss_"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of one run (None: of all), with what stands above and below it."""

    svg: Markup
    heading: str
    caption: str = ""
    run: int | None = None


def render(
    runs: Sequence[RunRecord], data: ReportData | None, findings: Sequence[Findings], title: str
) -> str:
    """Return the whole page; the same arguments give the same text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns, rows = tables.figure_table(runs, findings)
    groups, shared = tables.run_tables(runs)
    names = class_names(runs)
    return environment.get_template("template.html").render(
        title=title,
        version=__version__,
        theme=style.THEME,
        colours=style.COLOURS,
        runs=runs,
        findings=findings,
        data=data,
        keys=[Markup(style.key(run.number, run.name)) for run in runs],
        unfinished=[run for run in runs if run.result is None],
        groups=groups,
        shared=shared,
        spans=[(group, len(list(each))) for group, each in groupby(columns, lambda c: c.group)],
        columns=columns,
        rows=rows,
        curves=_curves(runs),
        uncharted=_uncharted(runs),
        reliability=[_reliability(runs, each) for each in findings],
        coverage=_coverage(findings) if findings else None,
        classes=_classes(findings, names),
        ranked=analysis.WORST_AND_BEST if _ranked(findings) else None,
        class_total=len(names),
        matrices=_matrices(runs, findings),
        uncompared=[each for each in findings if isinstance(each.compared, str)],
        maps=[_map(runs, each, len(names)) for each in findings if each.points is not None],
        unmapped=[each for each in findings if each.points is None],
        mapped=max((len(each.point_labels) for each in findings), default=0),
        samples=int(findings[0].class_count.sum()) if findings else 0,
        tints=list(zip(figures.class_colours(len(names)), names, strict=True)),
        most_numbered=figures.MOST_NUMBERED,
    )


def class_names(runs: Sequence[RunRecord]) -> list[str]:
    """Return the classes' names from the first begun run, else their numbers."""
    begun = next((run.inputs for run in runs if run.inputs is not None), None)
    if begun is None:
        return []
    return list(begun.class_names or map(str, range(begun.classes)))


def _curves(runs: Sequence[RunRecord]) -> list[Picture]:
    terms = dict.fromkeys(
        key for run in runs for line in run.history for key in line if key.startswith(_TERM)
    )
    panels = [("loss", "Training loss", "loss (nats)", 1)] + [
        (key, f"Training loss, {_word(key)} term", "loss (nats)", 1)
        for key in terms
        if any(line.get(key, line["loss"]) != line["loss"] for run in runs for line in run.history)
    ]
    drawn = []
    for key, heading, unit, scale in (*panels, *_CURVES):
        series = [line for run in runs if (line := _series(run, key, scale)) is not None]
        if series:
            names = ", ".join(runs[line.run].name for line in series)
            svg = figures.curves(series, title=f"{heading}: {names}", x="epoch", y=unit)
            drawn.append(Picture(svg=Markup(svg), heading=heading))
    return drawn


def _word(key: str) -> str:
    return key.removeprefix(_TERM).replace("_", " ")


def _series(run: RunRecord, key: str, scale: float) -> figures.Series | None:
    lines = [line for line in run.history if key in line]
    if not lines:
        return None
    x = np.array([line["epoch"] for line in lines], float)
    marked = np.flatnonzero((x == run.best_epoch) & (key == "val_accuracy"))
    return figures.Series(
        run=run.number,
        x=x,
        y=scale * np.array([line[key] for line in lines], float),
        mark=int(marked[0]) if len(marked) else None,
    )


def _uncharted(runs: Sequence[RunRecord]) -> list[str]:
    """Return sentences on missing curves that a reader may look for."""
    recorded = {key for run in runs for line in run.history for key in line}
    sentences = []
    if "val_accuracy" not in recorded:
        sentences.append("No validation curves: no run has validation data (train --val).")
    if "train_kd_error" not in recorded:
        sentences.append("No KD error: no run has a teacher's logits (train --store).")
    return sentences


def _reliability(runs: Sequence[RunRecord], finding: Findings) -> Picture:
    name, figure = runs[finding.run].name, finding.figures["last"]
    svg = figures.reliability_diagram(
        finding.reliability, run=finding.run, title=f"Reliability diagram of {name}, {BINS} bins"
    )
    caption = f"ECE {100 * figure['ece15']:.2f} % (15 bins), {100 * figure['ece10']:.2f} % (10)"
    return Picture(svg=Markup(svg), heading=name, caption=caption, run=finding.run)


def _coverage(findings: Sequence[Findings]) -> Picture:
    series = [
        figures.Series(run=each.run, x=100 * each.coverage, y=100 * each.risk) for each in findings
    ]
    # The risk of the first few samples is 0 or huge; it must not set the scale.
    settled = max(each.risk[each.coverage >= 0.1].max() for each in findings)
    svg = figures.curves(
        series,
        title="Risk-coverage curves",
        x="coverage (% of samples, most confident first)",
        y="risk (% wrong)",
        top=max(110 * float(settled), 1.0),
        wide=True,
    )
    return Picture(svg=Markup(svg), heading="")


def _classes(findings: Sequence[Findings], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the listed classes: name, samples, and accuracy in percent of each run."""
    if not findings:
        return []
    count = findings[0].class_count
    chosen = analysis.shown_classes([each.class_accuracy for each in findings], count)
    return [
        {
            "name": names[number] if names[number] == str(number) else f"{number} {names[number]}",
            "samples": int(count[number]),
            "accuracies": [100 * float(each.class_accuracy[number]) for each in findings],
        }
        for number in chosen
    ]


def _ranked(findings: Sequence[Findings]) -> bool:
    """Return whether only the worst and the best classes are listed."""
    return bool(findings) and int((findings[0].class_count > 0).sum()) > analysis.MOST_CLASSES


def _matrices(runs: Sequence[RunRecord], findings: Sequence[Findings]) -> list[Picture]:
    compared = [(each.run, each.compared) for each in findings]
    known = [(run, each) for run, each in compared if isinstance(each, Comparison)]
    most = max((float(each.difference.max()) for _, each in known), default=0.0)
    return [
        Picture(
            svg=Markup(
                figures.matrix(
                    each.difference,
                    most=max(most, 1e-6),
                    title=f"Correlation difference of {runs[run].name} and {each.teacher}",
                    scale="|difference of correlations|",
                )
            ),
            heading=runs[run].name,
            caption=f"mean {each.mean:.4f}; teacher {each.teacher}; {each.data}",
            run=run,
        )
        for run, each in known
    ]


def _map(runs: Sequence[RunRecord], finding: Findings, classes: int) -> Picture:
    assert finding.points is not None
    name = runs[finding.run].name
    svg = figures.scatter(
        finding.points, finding.point_labels, classes, title=f"t-SNE of the logits of {name}"
    )
    return Picture(svg=Markup(svg), heading=name, run=finding.run)
