"""A recipe: an experiment as data, every step of it an ordinary ``logitstore`` command.

``recipes/NAME.toml`` has one set of steps and two scales, the paper's own settings and small ones;
a scale is nothing but variables.  Here is what such a file may hold; ``recipe_setting`` spells its
commands out, ``reproduce`` runs them.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitstore.errors import InputError, NotFound, UnknownName

Scalar = str | int | float


Value = Scalar | tuple[Scalar, ...]


ScaleName = Literal["small", "paper"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Scale(_Part):
    """Variables, and what is to be had: ``needs`` are files under --root; ``cost`` is for people.

    ``seeds`` is how many seeds are run unless told otherwise.
    """

    cost: str
    seeds: int = Field(ge=1)
    needs: tuple[str, ...] = ()
    variables: dict[str, Value]


class Each(_Part):
    """Base: repeated for every combination of its axes.

    An axis is a list of values, or the name of a variable that is one; ``seeds`` counts from 0.
    """

    axes: dict[str, str | tuple[Scalar, ...]] = Field(default_factory=dict, alias="for")


class Step(Each):
    """One command, without the word ``logitstore``; ``save`` keeps the JSON that it prints."""

    run: str
    save: str | None = None


class Row(Each):
    """A line of the table: runs, or JSON files that steps saved, one for each seed in ``at``."""

    label: str
    at: str


class Table(_Part):
    """``figures`` are dotted paths into result.json, such as test.top1; gains are in the first."""

    figures: tuple[str, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    baseline: str | None = None


class Effect(_Part):
    """What the paper found, as a comparison of two rows, paired by seed."""

    says: str
    row: str
    over: str
    figure: str
    wanted: Literal["higher", "lower"] = "higher"

    @property
    def rows(self) -> tuple[str, str]:
        """Labels of the two."""
        return self.row, self.over


class Results(_Part):
    """The paper's own table; ``source`` says where its numbers were read, or that they were not."""

    source: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class Recipe(_Part):
    """A whole recipe; ``name`` is its file's stem."""

    name: str
    title: str
    paper: str
    claim: str
    notes: str = ""
    variables: dict[str, Value] = Field(default_factory=dict)
    scales: dict[ScaleName, Scale]
    steps: tuple[Step, ...] = Field(min_length=1)
    table: Table
    effects: tuple[Effect, ...] = Field(min_length=1)
    results: Results

    @model_validator(mode="after")
    def _compares_what_there_is(self) -> Recipe:
        for effect in self.effects:
            if effect.figure not in self.table.figures:
                raise ValueError(
                    f"effect {effect.says!r}: no figure {effect.figure!r} in the table"
                )
        return self


def recipe_names() -> list[str]:
    """The recipes that come with this package, sorted."""
    folder = files(__package__)
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(name: str) -> Recipe:
    """A recipe of ours by name, or ``FILE.toml``.

    Raises UnknownName, NotFound, or InputError naming the file and the field.
    """
    if name.endswith(".toml"):
        stem, path = Path(name).stem, Path(name)
        if not path.is_file():
            raise NotFound(f"{path}: there is no such recipe")
        return _parse(stem, name, path.read_bytes())
    if name not in recipe_names():
        raise UnknownName.among("recipe", name, recipe_names())
    return _parse(name, name, (files(__package__) / f"{name}.toml").read_bytes())


def _parse(name: str, where: str, data: bytes) -> Recipe:
    try:
        return Recipe.model_validate({**tomllib.loads(data.decode()), "name": name})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {where}: not a readable TOML file: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(document)"
        raise InputError(f"recipe {where}: {field}: {first['msg'].lower()}") from None
