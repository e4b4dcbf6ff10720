"""A recipe at one scale: its commands spelled out, its table's rows as folders, its missing data.

Nothing is run here, and only ``missing`` looks at the disk.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Template

from logitstore.errors import InputError
from logitstore.trainer.studies.recipe import Recipe, Scale


@dataclass(frozen=True, kw_only=True)
class Command:
    """A step spelled out; ``save`` is the file that keeps the JSON that it prints."""

    arguments: tuple[str, ...]
    save: Path | None

    def __str__(self) -> str:
        """Write the command as a user types it."""
        output = f" > {shlex.quote(str(self.save))}" if self.save else ""
        return f"logitstore {shlex.join(self.arguments)}{output}"


@dataclass(frozen=True, kw_only=True)
class ScaledRecipe:
    """A recipe, called ``name``, at one scale; ``out`` is the folder of this recipe alone."""

    name: str
    recipe: Recipe
    scale_name: str
    root: Path
    out: Path
    seeds: int

    @property
    def scale(self) -> Scale:
        return self.recipe.scales[self.scale_name]

    def commands(self) -> list[Command]:
        """Return all commands, in order; InputError for a step that cannot be spelled out."""
        commands = []
        for number, step in enumerate(self.scale.steps, start=1):
            where = f"recipe {self.name}, step {number}"
            for seed in self._seeds_of(step):
                words = [self._fill(word, seed, where) for word in shlex.split(step)]
                save = None
                if words[-2:-1] == [">"]:
                    save = Path(words[-1])
                    words = words[:-2]
                commands.append(Command(arguments=tuple(words), save=save))
        return commands

    def rows(self) -> dict[str, tuple[Path, ...]]:
        """Return the runs, or the JSON files, of each of the table's rows, by label."""
        rows = {}
        for label, place in self.scale.rows.items():
            where = f"recipe {self.name}, row {label!r}"
            seeds = self._seeds_of(place)
            rows[label] = tuple(self.out / self._fill(place, seed, where) for seed in seeds)
        return rows

    def missing(self) -> list[Path]:
        """Return the files that the scale needs and that are not there."""
        paths = [self.root / name for name in self.scale.settings.needs]
        return [path for path in paths if not path.exists()]

    def _seeds_of(self, text: str) -> range:
        return range(self.seeds if "$SEED" in text else 1)

    def _fill(self, word: str, seed: int, where: str) -> str:
        """Put folders and seed into a word that was split before: paths may hold spaces."""
        try:
            return Template(word).substitute(ROOT=self.root, OUT=self.out, SEED=seed)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{where}: {word!r} has a variable other than $ROOT, $OUT and $SEED: {error}"
            ) from None
