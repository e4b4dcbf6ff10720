"""What a reproduced recipe says: our table beside the paper's, and one sentence for each effect.

From the document that ``reproduce`` makes, to Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import sqrt
from textwrap import indent
from typing import Any

from logitstore.trainer.studies.seeds import Gain, OverSeeds

_SHARE = re.compile(r"(top\d+|ece\d*|accuracy|agreement|kd_error)(_fitted)?$")


def table_lines(document: dict[str, Any]) -> list[str]:
    """The whole of table.md."""
    figures, base = document["figures"], document["baseline"]
    header = ["ours", "n", *(_heading(name) for name in figures)]
    if base is not None:
        header.append(f"gain over {base}")
    rows = [_row(row, figures, base) for row in document["rows"]]
    return [
        f"### {document['title']}",
        "",
        f"{document['paper']}: {document['claim']}",
        "",
        f"`{document['command']}`: mean ± standard deviation of n seeds; gains are paired by seed.",
        "",
        *_markdown(header, rows),
        "",
        *(f"* {sentence}" for sentence in sentences(document)),
        "",
        *_paper_lines(document["results"]),
        *(["", document["notes"].strip()] if document["notes"] else []),
    ]


def recipe_lines(listed: Sequence[dict[str, Any]]) -> list[str]:
    """The recipes for a person, two lines each."""
    return [
        line
        for entry in listed
        for line in (
            f"{entry['name']}  ({entry['paper']}; small: {entry['cost']['small']})",
            *indent(entry["claim"], "    ").splitlines(),
        )
    ]


def sentences(document: dict[str, Any]) -> list[str]:
    """Whether each effect shows at this scale."""
    return [_sentence(effect, document["scale"]) for effect in document["effects"]]


def _sentence(effect: dict[str, Any], scale: str) -> str:
    gain, count = effect["gain"], effect["samples"]
    shown = _number(gain, effect["figure"], "+")
    if effect["deviation"] is None:
        measured = f"{shown} in a single run, which has no spread"
    else:
        error = _number(effect["deviation"] / sqrt(count), effect["figure"])
        measured = f"{shown} with a standard error of {error}, n = {count}"
    unit = " points" if _is_share(effect["figure"]) else ""
    return (
        f"{effect['says']}: {effect['verdict']} at {scale} scale "
        f"({effect['figure']}{unit}: {measured})."
    )


def _row(row: dict[str, Any], figures: Sequence[str], base: str | None) -> list[str]:
    cells = [row["label"], str(len(row["values"][figures[0]]))]
    cells += [_cell(OverSeeds(tuple(row["values"][name])), name) for name in figures]
    if base is not None:
        cells.append("" if row["gains"] is None else _cell(Gain(tuple(row["gains"])), figures[0]))
    return cells


def _paper_lines(results: dict[str, Any]) -> list[str]:
    source = f"The paper's ({results['source']})"
    if not results["rows"]:
        return [f"{source}."]
    return [f"{source}:", "", *_markdown(results["columns"], results["rows"])]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruled, *rows)]


def _cell(values: OverSeeds, figure: str) -> str:
    return values.cell(_decimals(figure), percent=_is_share(figure))


def _number(value: float, figure: str, sign: str = "") -> str:
    return f"{(100 if _is_share(figure) else 1) * value:{sign}.{_decimals(figure)}f}"


def _decimals(figure: str) -> int:
    """Return the decimals of a share in percent, of a count, or of anything else."""
    if _is_share(figure):
        return 2
    return 1 if _is_count(figure) else 4


def _heading(figure: str) -> str:
    return f"{figure} %" if _is_share(figure) else figure


def _is_share(figure: str) -> bool:
    return _SHARE.search(figure) is not None


def _is_count(figure: str) -> bool:
    return re.search(r"errors|samples", figure.rsplit(".", 1)[-1]) is not None
