"""A recipe at one scale: its placeholders filled in, its commands and its table's rows spelled out.

Nothing is run here, and only ``missing`` looks at the disk.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from logitstore.errors import InputError, UnknownName
from logitstore.trainer.studies.recipes.recipe import Each, Effect, Recipe, Scalar, ScaleName, Value

_PLACES = ("root", "out")


_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A step spelled out; ``save``: where the JSON that it prints is kept."""

    arguments: tuple[str, ...]
    save: Path | None

    def __str__(self) -> str:
        """As a user types it."""
        kept = f" > {shlex.quote(str(self.save))}" if self.save else ""
        return f"logitstore {shlex.join(self.arguments)}{kept}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row spelled out: its runs or JSON files, one a seed, or one alone (``seeded`` False)."""

    label: str
    places: tuple[Path, ...]
    seeded: bool


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A recipe at one scale, with its places; ``out`` is the folder of this recipe alone."""

    recipe: Recipe
    scale: ScaleName
    root: Path
    out: Path
    seeds: int

    def commands(self) -> list[Command]:
        """All commands, in order.  InputError for a placeholder that nothing fills, and where."""
        found = []
        for number, step in enumerate(self.recipe.steps, start=1):
            where = f"recipe {self.recipe.name}, step {number}"
            for values in self._combinations(step, where):
                words = shlex.split(expand(step.run, values, where))
                save = None if step.save is None else expand(step.save, values, where)
                found.append(
                    Command(
                        arguments=tuple(map(self._placed, words)),
                        save=None if save is None else Path(self._placed(save)),
                    )
                )
        return found

    def cells(self) -> dict[str, Cell]:
        """The table's rows by label, in order; InputError as ``commands``.

        Also for an effect or a baseline that names no row, or pairs seeds with a single run.
        """
        recipe, found = self.recipe, {}
        for row in recipe.table.rows:
            where = f"recipe {recipe.name}, row {row.label!r}"
            for values in self._combinations(row, where):
                seeds = range(self.seeds) if "{seed}" in row.at else (0,)
                places = [expand(row.at, {**values, "seed": seed}, where) for seed in seeds]
                label = expand(row.label, values, where)
                found[label] = Cell(
                    label=label,
                    places=tuple(Path(self._placed(place)) for place in places),
                    seeded="{seed}" in row.at,
                )
        for effect in self.effects():
            pair = [_named(found, label, f"recipe {recipe.name}") for label in effect.rows]
            if pair[0].seeded != pair[1].seeded:
                raise InputError(
                    f"recipe {recipe.name}: effect {effect.says!r} compares a row of seeds with a "
                    "single run"
                )
        if recipe.table.baseline is not None:
            _named(found, recipe.table.baseline, f"recipe {recipe.name}")
        return found

    def effects(self) -> list[Effect]:
        """The effects, with the labels of their rows spelled out."""
        where, variables = f"recipe {self.recipe.name}, effects", self._variables()
        return [
            effect.model_copy(
                update={
                    "row": expand(effect.row, variables, where),
                    "over": expand(effect.over, variables, where),
                }
            )
            for effect in self.recipe.effects
        ]

    def missing(self) -> list[Path]:
        """The files that the scale needs and that are not there."""
        needs = self.recipe.scales[self.scale].needs
        return [self.root / name for name in needs if not (self.root / name).exists()]

    def _placed(self, word: str) -> str:
        """A word with the two places filled in: last, as paths may hold spaces and braces."""
        for name in _PLACES:
            word = word.replace(f"{{{name}}}", str(getattr(self, name)))
        return word

    def _combinations(self, part: Each, where: str) -> Iterator[dict[str, Value]]:
        variables = self._variables()
        axes = [
            [(name, value) for value in _axis(given, variables, where)]
            for name, given in part.axes.items()
        ]
        for chosen in product(*axes):
            yield {**variables, **dict(chosen)}

    def _variables(self) -> dict[str, Value]:
        own = self.recipe.scales[self.scale].variables
        return {**self.recipe.variables, **own, "seeds": tuple(range(self.seeds))}


def expand(text: str, values: Mapping[str, Value], where: str, inside: Sequence[str] = ()) -> str:
    """``text`` with its placeholders filled in, also those in the values; root and out are kept.

    InputError for a placeholder that nothing fills, or that fills itself.
    """

    def filled(found: re.Match[str]) -> str:
        name = found[1]
        if name in _PLACES:
            return found[0]
        if name not in values:
            known = ", ".join(sorted([*values, *_PLACES]))
            raise InputError(f"{where}: unknown variable {{{name}}} in {text!r}; known: {known}")
        value = values[name]
        if isinstance(value, tuple):
            raise InputError(f"{where}: {{{name}}} in {text!r} is a list: use it as an axis of for")
        if name in inside:
            raise InputError(f"{where}: {{{name}}} is filled with itself")
        return expand(str(value), values, where, (*inside, name))

    return _PLACEHOLDER.sub(filled, text)


def _axis(
    given: str | tuple[Scalar, ...], variables: Mapping[str, Value], where: str
) -> tuple[Scalar, ...]:
    if isinstance(given, tuple):
        return given
    found = variables.get(given)
    if not isinstance(found, tuple):
        lists = ", ".join(name for name, value in variables.items() if isinstance(value, tuple))
        raise InputError(f"{where}: {given!r} in for is no list of the scale; there are {lists}")
    return found


def _named(cells: Mapping[str, Cell], label: str, where: str) -> Cell:
    if label not in cells:
        raise UnknownName.among(f"row of {where}", label, cells)
    return cells[label]
