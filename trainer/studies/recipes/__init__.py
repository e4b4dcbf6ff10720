"""The recipes: one file for each experiment of a paper, with the commands that repeat it.

``recipe()`` of a file returns what the paper claims, the commands at both scales, how their table
is made and the paper's own numbers.  RESULTS.md has our tables.  A new file is a new recipe.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules

from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.specs import load_factory
from logitstore.trainer.studies.recipe import Recipe


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with this package, sorted."""
    modules = [module.name for module in iter_modules(__path__) if module.name != "settings"]
    return sorted(name.replace("_", "-") for name in modules)


def load_recipe(name: str) -> tuple[str, Recipe]:
    """Return the name and the recipe of one of ours, or of ``FILE.py`` with a function recipe().

    Raises UnknownName, NotFound or InputError.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise NotFound(f"{name}: there is no such recipe")
        stem, place = Path(name).stem, name
    elif name in recipe_names():
        stem, place = name, f"{__name__}.{name.replace('-', '_')}"
    else:
        raise UnknownName.among("recipe", name, recipe_names())
    factory, _ = load_factory(f"{place}:recipe")
    try:
        recipe = factory()
    except Exception as error:  # whatever a person's file raises
        raise InputError(f"recipe {place}: {error}") from error
    if not isinstance(recipe, Recipe):
        kind = type(recipe).__name__
        raise InputError(f"recipe {place}: recipe() returned a {kind}, not a Recipe")
    return stem, recipe
