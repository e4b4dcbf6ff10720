"""Run a recipe: its commands one after another, then our table beside the paper's.

Every command resumes by itself, so the same call goes on where an interrupted one stopped, and a
finished recipe only prints its table again.  Nothing here knows an experiment: see ``recipes``.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from logitstore.errors import InputError, NotFound, Unfinished, UnknownName
from logitstore.progress import Progress, Silent
from logitstore.storage.durable import write_file
from logitstore.trainer.studies.recipe_table import RecipeTable, TableEffect, TableRow
from logitstore.trainer.studies.recipes import load_recipe, recipe_names
from logitstore.trainer.studies.scaled_recipe import Command, ScaledRecipe
from logitstore.trainer.studies.seeds import OverSeeds, paired

Run = Callable[[list[str]], Any]

_INTERRUPTED, _UNFINISHED = 130, 3
"""Exit codes of a command that Ctrl-C ended, and of one that the same call would go on with."""


def list_recipes() -> list[dict[str, Any]]:
    """Return name, title, paper, claim and the cost of each scale of every recipe of ours."""
    return [
        {
            "name": name,
            "title": recipe.title,
            "paper": recipe.paper,
            "claim": recipe.claim,
            "cost": {scale: entry.settings.cost for scale, entry in recipe.scales.items()},
        }
        for name, recipe in map(load_recipe, recipe_names())
    ]


def set_up(
    name: str, *, root: Path, out: Path, scale: str = "small", seeds: int | None = None
) -> ScaledRecipe:
    """Return a recipe at a scale; ``out`` is the folder that holds a folder for each recipe.

    Raises UnknownName, NotFound or InputError.
    """
    short_name, recipe = load_recipe(name)
    if scale not in recipe.scales:
        raise UnknownName.among(f"scale of recipe {short_name}", scale, recipe.scales)
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    return ScaledRecipe(
        name=short_name,
        recipe=recipe,
        scale_name=scale,
        root=root,
        out=out / short_name,
        seeds=recipe.scales[scale].settings.seeds if seeds is None else seeds,
    )


def reproduce(scaled: ScaledRecipe, run: Run, progress: Progress | None = None) -> RecipeTable:
    """Run the commands with ``run`` (arguments -> exit code), and write and return the table.

    OUT/table.json and table.md.  Raises NotFound before any work if data are missing, InputError
    with the command that failed and what it said, Unfinished if the same call should be made again.
    """
    progress = progress or Silent()
    _refuse_missing(scaled)
    # Small networks gain nothing from threads, and figures should not depend on their number.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    commands = scaled.commands()
    start = time.monotonic()
    for number, command in enumerate(commands, start=1):
        eta = (time.monotonic() - start) / max(number - 1, 1) * (len(commands) - number + 1)
        remaining = f", ETA {eta:.0f} s" if number > 1 else ""
        progress.message(f"step {number}/{len(commands)}{remaining}: {command}")
        _carry_out(command, run)
    table = _table(scaled)
    document = json.dumps(table.document(), indent=2)
    write_file(scaled.out / "table.json", document.encode() + b"\n")
    write_file(scaled.out / "table.md", "\n".join(table.lines()).encode() + b"\n")
    return table


def _refuse_missing(scaled: ScaledRecipe) -> None:
    for path in scaled.missing():
        if path.with_name(f"{path.name}.gz").is_file():
            raise NotFound(f"{path}: it is there compressed only: gunzip -k {path}.gz")
        raise NotFound(
            f"{path}: there is no such file, which recipe {scaled.name} needs at scale "
            f"{scaled.scale_name}: is --root {scaled.root} the folder of the data?"
        )


def _carry_out(command: Command, run: Run) -> None:
    """Run one command quietly; what it prints is kept if the recipe says so, and only made once."""
    if command.save is not None and _is_saved(command.save, command):
        return
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = run(list(command.arguments))
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        kind = Unfinished if code == _UNFINISHED else InputError
        raise kind(f"`{command}` ended with {code}: {errors.getvalue().strip()[-2000:]}")
    if command.save is not None:
        document = {"command": command.arguments, "output": json.loads(output.getvalue())}
        text = json.dumps(document, indent=2) + "\n"
        write_file(command.save, text.encode())


def _is_saved(path: Path, command: Command) -> bool:
    """Say whether the file holds what this very command printed before."""
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(document, dict) and document.get("command") == list(command.arguments)


def _table(scaled: ScaledRecipe) -> RecipeTable:
    """Read the figures of all rows, and compare them."""
    scale, first, base = scaled.scale, scaled.recipe.figures[0], scaled.recipe.baseline
    figures = {label: _figures(places, scaled) for label, places in scaled.rows().items()}
    seeded = {label: row[first].values for label, row in figures.items() if scale.has_seeds(label)}
    rows = []
    for label, values in figures.items():
        gain = None
        if base in seeded and label in seeded and label != base:
            gain = paired(seeded[label], seeded[base])
        rows.append(TableRow(label=label, figures=values, gain=gain))
    effects = []
    for effect in scale.effects:
        row, over = (figures[label][effect.figure].values for label in (effect.row, effect.over))
        gain = paired(row, over) if effect.better == "higher" else paired(over, row)
        effects.append(TableEffect(effect=effect, gain=gain))
    return RecipeTable(scaled=scaled, rows=tuple(rows), effects=tuple(effects))


def _figures(places: tuple[Path, ...], scaled: ScaledRecipe) -> dict[str, OverSeeds]:
    return {
        name: OverSeeds(tuple(_figure(place, name, scaled.name) for place in places))
        for name in scaled.recipe.figures
    }


def _figure(place: Path, name: str, recipe: str) -> float:
    """Return one figure of a run's result, or of what a step saved."""
    path = place if place.suffix == ".json" else place / "result.json"
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"recipe {recipe}: {path}: no step has made it") from None
    value: Any = document["output"] if place.suffix == ".json" else document
    for key in name.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise InputError(f"recipe {recipe}: {path} has no {name}, at {key!r}") from None
    return float(value)
