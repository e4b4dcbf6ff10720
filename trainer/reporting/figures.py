"""Draw a report's pictures: arrays in, one self-contained SVG element as text out.

Nothing that a user named is drawn: names of classes and runs stand in the page, which escapes them.
Ink and runs' colours are CSS variables of the page, so that the same picture serves a light and a
dark one (``style``).  The same arrays give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from logitstore.trainer.metrics import Reliability
from logitstore.trainer.reporting.style import THEME, VARIABLES, dashes, light_hex

Floats = NDArray[np.floating]

MOST_NUMBERED = 30
"""Most classes whose numbers fit into a map of points."""

_MOST_CELLS = 200
"""Most cells of a matrix along a side."""

_MOST_POINTS = 400
"""Most points of a curve."""

_POINTS_OF = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"),
    *("#d55e00", "#8a7bd1", "#8c6d31", "#7f7f7f", "#b5bd00"),
)

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",
    "font.size": 12.0,
    "text.color": THEME["ink"][0],
    "axes.edgecolor": THEME["quiet"][0],
    "axes.labelcolor": THEME["ink"][0],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": THEME["rule"][0],
    "grid.linewidth": 0.8,
    "xtick.color": THEME["quiet"][0],
    "ytick.color": THEME["quiet"][0],
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "path.simplify": False,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """The line of a run: its number, ``x`` and ``y`` (P,), and the point to mark."""

    run: int
    x: Floats
    y: Floats
    mark: int | None = None


def curves(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    top: float | None = None,
    wide: bool = False,
) -> str:
    """Draw lines over a common x, with units in the axes' names ``x`` and ``y``.

    ``top`` ends the y axis; else it is logarithmic where the values span more than a factor of 30.
    """
    with style.context(_STYLE, after_reset=True):
        width, height = (720, 330) if wide else (400, 270)
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((64 / width, 48 / height, 1 - 76 / width, 1 - 58 / height))
        for line in series:
            _draw(axes, line)
        values = np.concatenate([line.y for line in series])
        if top is not None:
            axes.set_ylim(0, top)
        if top is None and values.min() > 0 and values.max() > 30 * values.min():
            _logarithmic(axes, float(values.max() / values.min()))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return _svg(figure, title)


def reliability_diagram(bins: Reliability, *, run: int, title: str) -> str:
    """Draw accuracy over confidence in bins of equal width, and below it each bin's samples.

    A bar is a bin's accuracy, the line across it its mean confidence.
    """
    with style.context(_STYLE, after_reset=True):
        figure = Figure(figsize=(400 / 72, 370 / 72))
        upper = figure.add_axes((0.155, 0.38, 0.8, 0.585))
        lower = figure.add_axes((0.155, 0.135, 0.8, 0.18))
        number, filled = len(bins.count), bins.count > 0
        edges = np.arange(number) / number * 100
        accuracy, confidence = 100 * bins.accuracy[filled], 100 * bins.confidence[filled]
        wide, tint = 100 / number, light_hex(run)
        upper.bar(edges[filled], accuracy, 0.92 * wide, align="edge", color=tint, alpha=0.75)
        ends = edges[filled], edges[filled] + 0.92 * wide
        upper.hlines(confidence, *ends, color=THEME["ink"][0], linewidth=2)
        upper.plot([0, 100], [0, 100], color=THEME["quiet"][0], linewidth=1.2, dashes=(4, 3))
        upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)", xticklabels=[])
        lower.bar(edges, 100 * bins.count / bins.count.sum(), 0.92 * wide, align="edge", color=tint)
        lower.set(xlim=(0, 100), xlabel="confidence (%)", ylabel="samples (%)")
        lower.yaxis.set_major_locator(MaxNLocator(2))
        for axes in (upper, lower):
            axes.yaxis.set_label_coords(-0.115, 0.5)
        return _svg(figure, title)


def matrix(values: Floats, *, most: float, title: str, scale: str) -> str:
    """Draw a class-by-class matrix (C, C) in colours from 0 to ``most``, named ``scale``.

    Beyond 200 classes a cell is the mean of a square of neighbours.
    """
    step = -(-len(values) // _MOST_CELLS)
    with style.context(_STYLE, after_reset=True):
        figure = Figure(figsize=(400 / 72, 345 / 72))
        axes = figure.add_axes((0.125, 0.145, 0.68, 0.83))
        axes.grid(False)
        extent = (-0.5, len(values) - 0.5, len(values) - 0.5, -0.5)
        image = axes.imshow(
            _pooled(values, step),
            vmin=0,
            vmax=most,
            cmap="PuBuGn",
            interpolation="none",
            extent=extent,
            aspect="auto",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
        axes.set(xlabel="class", ylabel="class", xlim=extent[:2], ylim=extent[2:])
        bar = figure.colorbar(image, cax=figure.add_axes((0.835, 0.145, 0.03, 0.83)))
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(MaxNLocator(5))
        bar.set_label(scale)
        return _svg(figure, title)


def scatter(points: Floats, labels: NDArray[np.integer], classes: int, *, title: str) -> str:
    """Draw points (N, 2) in their classes' colours, grey at -1; up to 30 classes are numbered.

    A class is one path of dots: a tenth of what matplotlib writes.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    placed = 12 + (points - low) / np.where(high > low, high - low, 1) * (376, 336)
    tints = [*class_colours(classes), VARIABLES[THEME["quiet"][0]]]
    present = [int(number) for number in np.unique(labels)]
    dots = [
        f'<path stroke="{tints[number]}" d="'
        + "".join(f"M{x:.1f} {y:.1f}h.01" for x, y in placed[labels == number])
        + '"/>'
        for number in present
    ]
    numbered = [number for number in present if number >= 0 and classes <= MOST_NUMBERED]
    middles = {number: np.median(placed[labels == number], axis=0) for number in numbered}
    texts = [
        f'<text x="{x:.1f}" y="{y + 5:.1f}">{number}</text>' for number, (x, y) in middles.items()
    ]
    return (
        f'<svg class="points" viewBox="0 0 400 360" role="img"><title>{escape(title)}</title>'
        f"{''.join(dots)}{''.join(texts)}</svg>"
    )


def class_colours(classes: int) -> list[str]:
    """Return a hex colour for each class; from 11 on neighbouring numbers look alike."""
    if classes <= len(_POINTS_OF):
        return list(_POINTS_OF[:classes])
    return [to_hex(mpl.colormaps["turbo"](0.05 + 0.9 * n / (classes - 1))) for n in range(classes)]


def _draw(axes: Axes, line: Series) -> None:
    points = np.unique(np.linspace(0, len(line.x) - 1, _MOST_POINTS).round().astype(int))
    alone = "o" if len(points) == 1 else None
    tint = light_hex(line.run)
    (drawn,) = axes.plot(line.x[points], line.y[points], color=tint, marker=alone)
    if dashes(line.run):
        drawn.set_dashes(dashes(line.run))
    if line.mark is not None:
        at = line.x[line.mark], line.y[line.mark]
        axes.plot(*at, "o", color=tint, markeredgecolor=THEME["paper"][0], markersize=8)


def _logarithmic(axes: Axes, span: float) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _pooled(values: Floats, step: int) -> Floats:
    """Return the means of squares of ``step`` cells a side; the last ones may be smaller."""
    starts = np.arange(0, len(values), step)
    sums = np.add.reduceat(np.add.reduceat(values, starts, axis=0), starts, axis=1)
    sizes = np.diff([*starts, len(values)])
    means: Floats = sums / np.outer(sizes, sizes)
    return means


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as a scalable element with a title and ids that no other figure has."""
    written = StringIO()
    figure.savefig(written, format="svg", dpi=144, metadata={"Date": None})
    text = written.getvalue()
    _, _, inside = text[text.index("<svg") :].partition(">")
    inside = re.sub(r"<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    inside = re.sub(r"#[0-9a-f]{6}", lambda match: VARIABLES.get(match[0], match[0]), inside)
    inside = _own_ids(inside, sha256((title + inside).encode()).hexdigest()[:8])
    wide, high = (72 * length for length in figure.get_size_inches())
    return f'<svg viewBox="0 0 {wide:g} {high:g}" role="img"><title>{escape(title)}</title>{inside}'


def _own_ids(text: str, prefix: str) -> str:
    used = set(re.findall(r'(?:url\(|")#([^")]+)', text))

    def renamed(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]+)"', renamed, text)
    return re.sub(r'((?:url\(|")#)(?=[^")]+["\)])', rf"\g<1>{prefix}-", text)
