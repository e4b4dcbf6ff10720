"""The table of a recipe that was run: our figures beside the paper's, and a sentence per effect.

As Markdown for people and as a document for JSON.  It reads no file and computes no figure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill, indent
from typing import Any

from logitstore.trainer.studies.recipe import Effect
from logitstore.trainer.studies.scaled_recipe import ScaledRecipe
from logitstore.trainer.studies.seeds import Gain, OverSeeds

_SHARE = re.compile(r"(top\d+|ece\d*|accuracy|agreement|kd_error)(_fitted)?$")
_COUNT = re.compile(r"[^.]*(errors|samples)[^.]*$")
_WIDTH = 96
"""Characters of a line of text."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row's figures by name; ``gain`` is over the baseline, in the first figure."""

    label: str
    figures: dict[str, OverSeeds]
    gain: Gain | None


@dataclass(frozen=True, kw_only=True)
class TableEffect:
    """An effect of the paper and our gain, which is positive if it goes the paper's way."""

    effect: Effect
    gain: Gain


@dataclass(frozen=True, kw_only=True)
class RecipeTable:
    """The results of a recipe at one scale."""

    scaled: ScaledRecipe
    rows: tuple[TableRow, ...]
    effects: tuple[TableEffect, ...]

    @property
    def command(self) -> str:
        """Return the command that makes this table."""
        scaled = self.scaled
        options = f"--scale {scaled.scale_name} --seeds {scaled.seeds}"
        return f"logitstore reproduce {scaled.name} {options}"

    def document(self) -> dict[str, Any]:
        """Return everything as JSON can hold it: what table.json is."""
        recipe, scaled = self.scaled.recipe, self.scaled
        columns, *published = recipe.published or ((),)
        return {
            "recipe": scaled.name,
            "title": recipe.title,
            "paper": recipe.paper,
            "claim": recipe.claim,
            "notes": recipe.all_notes,
            "command": self.command,
            "scale": scaled.scale_name,
            "seeds": scaled.seeds,
            "figures": list(recipe.figures),
            "baseline": recipe.baseline,
            "rows": [
                {
                    "label": row.label,
                    "values": {name: list(seeds.values) for name, seeds in row.figures.items()},
                    "gains": None if row.gain is None else list(row.gain.values),
                }
                for row in self.rows
            ],
            "effects": [
                {
                    "says": entry.effect.says,
                    "figure": entry.effect.figure,
                    "gain": entry.gain.mean,
                    "deviation": entry.gain.deviation,
                    "samples": entry.gain.n,
                    "verdict": entry.gain.verdict,
                }
                for entry in self.effects
            ],
            "results": {
                "source": recipe.source,
                "columns": list(columns),
                "rows": [list(cells) for cells in published],
            },
        }

    def lines(self) -> list[str]:
        """Return the whole of table.md."""
        recipe = self.scaled.recipe
        header = ["ours", "n", *map(_heading, recipe.figures)]
        if recipe.baseline is not None:
            header.append(f"gain over {recipe.baseline}")
        return [
            f"### {recipe.title}",
            "",
            f"{_wrapped(recipe.paper)}: {_wrapped(recipe.claim)}",
            "",
            f"`{self.command}`: mean ± standard deviation of n seeds; gains are paired by seed.",
            "",
            *_markdown(header, [self._cells(row) for row in self.rows]),
            "",
            *(f"* {sentence}" for sentence in self.sentences()),
            "",
            *self._published(),
            *(["", _wrapped(recipe.all_notes)] if recipe.all_notes else []),
        ]

    def sentences(self) -> list[str]:
        """Say of each effect whether it shows at this scale."""
        return [_sentence(entry, self.scaled.scale_name) for entry in self.effects]

    def _cells(self, row: TableRow) -> list[str]:
        figures = [_cell(name, values) for name, values in row.figures.items()]
        first, values = next(iter(row.figures.items()))
        cells = [row.label, str(values.n), *figures]
        if self.scaled.recipe.baseline is not None:
            cells.append("" if row.gain is None else _cell(first, row.gain))
        return cells

    def _published(self) -> list[str]:
        recipe = self.scaled.recipe
        source = f"The paper's ({recipe.source})"
        if not recipe.published:
            return [f"{source}."]
        header, *rows = recipe.published
        return [f"{source}:", "", *_markdown(header, rows)]


def recipe_lines(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Return the list of recipes for people, name and claim of each."""
    return [
        line
        for entry in recipes
        for line in (
            f"{entry['name']}  ({entry['paper']}; small: {entry['cost']['small']})",
            *indent(_wrapped(entry["claim"]), "    ").splitlines(),
        )
    ]


def _sentence(entry: TableEffect, scale: str) -> str:
    effect, gain = entry.effect, entry.gain
    mean = _cell(effect.figure, Gain((gain.mean,)))
    if gain.standard_error is None:
        measured = f"{mean} in a single run, which has no spread"
    else:
        error = _cell(effect.figure, OverSeeds((gain.standard_error,)))
        measured = f"{mean} with a standard error of {error}, n = {gain.n}"
    unit = " points" if _is_share(effect.figure) else ""
    return f"{effect.says}: {gain.verdict} at {scale} scale ({effect.figure}{unit}: {measured})."


def _cell(figure: str, values: OverSeeds) -> str:
    """Write a share in percent, a count with one decimal and anything else with four."""
    if _is_share(figure):
        return values.cell(2, percent=True)
    return values.cell(1 if _COUNT.search(figure) else 4)


def _heading(figure: str) -> str:
    return f"{figure} %" if _is_share(figure) else figure


def _is_share(figure: str) -> bool:
    return _SHARE.search(figure) is not None


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruled, *rows)]


def _wrapped(text: str) -> str:
    return fill(text, _WIDTH, break_on_hyphens=False)
