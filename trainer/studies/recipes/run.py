"""Run a recipe: its commands one after another, then our table beside the paper's.

Every command resumes by itself, so the same call goes on where an interrupted one stopped, and a
finished recipe only prints its table again.  Nothing here knows an experiment: see ``recipe``.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitstore.errors import InputError, NotFound, Unfinished, UnknownName
from logitstore.progress import Progress, Silent
from logitstore.storage import open_storage
from logitstore.trainer.studies.recipes.recipe import (
    Effect,
    Recipe,
    ScaleName,
    load_recipe,
    recipe_names,
)
from logitstore.trainer.studies.recipes.scaled import Cell, Command, Setting
from logitstore.trainer.studies.recipes.table import table_lines
from logitstore.trainer.studies.seeds import Verdict, paired

Run = Callable[[list[str]], Any]


_INTERRUPTED, _UNFINISHED = 130, 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Whether an effect shows: the paired gain over seeds, positive as the paper found it."""

    says: str
    figure: str
    gain: float
    deviation: float | None
    samples: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row's values of each figure, one a seed; ``gains`` are paired with the baseline's seeds."""

    label: str
    values: dict[str, tuple[float, ...]]
    gains: tuple[float, ...] | None


def list_recipes() -> list[dict[str, Any]]:
    """Every recipe of ours: name, title, paper, claim and what each scale costs."""
    return [
        {
            "name": name,
            "title": recipe.title,
            "paper": recipe.paper,
            "claim": recipe.claim,
            "cost": {scale: entry.cost for scale, entry in recipe.scales.items()},
        }
        for name, recipe in ((name, load_recipe(name)) for name in recipe_names())
    ]


def set_up(
    name: str, *, root: Path, out: Path, scale: str = "small", seeds: int | None = None
) -> Setting:
    """A recipe at a scale, checked; ``out`` is the folder that holds a folder for each recipe.

    Raises UnknownName, InputError, or NotFound for data that are not under ``root``.
    """
    recipe = load_recipe(name)
    if scale not in recipe.scales:
        raise UnknownName.among(f"scale of recipe {recipe.name}", scale, recipe.scales)
    known: ScaleName = "paper" if scale == "paper" else "small"
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    found = Setting(
        recipe=recipe,
        scale=known,
        root=root,
        out=out / recipe.name,
        seeds=recipe.scales[known].seeds if seeds is None else seeds,
    )
    found.cells()
    return found


def reproduce(setting: Setting, run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Run the commands with ``run`` (arguments -> exit code), and write and return the table.

    OUT/table.json and table.md.  Raises NotFound before any work if data are missing, InputError
    with the command that failed and what it said, Unfinished if the same call should be made again.
    """
    progress = progress or Silent()
    for path in setting.missing():
        if path.with_name(f"{path.name}.gz").is_file():
            raise NotFound(f"{path}: it is there compressed only: gunzip -k {path}.gz")
        raise NotFound(
            f"{path}: there is no such file, which recipe {setting.recipe.name} needs at scale "
            f"{setting.scale}: is --root {setting.root} the folder of the data?"
        )
    # Small networks gain nothing from threads, and figures should not depend on their number.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    commands = setting.commands()
    begun = time.monotonic()
    for number, command in enumerate(commands, start=1):
        eta = (time.monotonic() - begun) / max(number - 1, 1) * (len(commands) - number + 1)
        left = f", ETA {eta:.0f} s" if number > 1 else ""
        progress.message(f"step {number}/{len(commands)}{left}: {command}")
        _carry_out(command, run)
    found = _document(setting)
    storage = open_storage(setting.out)
    storage.put("table.json", json.dumps(found, indent=2).encode() + b"\n")
    storage.put("table.md", "\n".join(table_lines(found)).encode() + b"\n")
    return found


def _carry_out(command: Command, run: Run) -> None:
    """Run one command quietly; what it prints is kept if the recipe says so, and only made once."""
    if command.save is not None and _saved(command.save, command) is not None:
        return
    said, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(complained):
        code = run(list(command.arguments))
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        kind = Unfinished if code == _UNFINISHED else InputError
        raise kind(f"`{command}` ended with {code}: {complained.getvalue().strip()[-2000:]}")
    if command.save is not None:
        document = {"command": command.arguments, "output": json.loads(said.getvalue())}
        text = json.dumps(document, indent=2) + "\n"
        open_storage(command.save.parent).put(command.save.name, text.encode())


def _saved(path: Path, command: Command) -> Any:
    """What this very command printed before, None if it has not."""
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    asked = {"command": list(command.arguments)}
    same = isinstance(document, dict) and document.items() >= asked.items()
    return document.get("output") if same else None


def _document(setting: Setting) -> dict[str, Any]:
    """All that the table says, as JSON can hold it."""
    recipe, cells = setting.recipe, setting.cells()
    lines = _lines(recipe, cells)
    scale = setting.scale
    command = f"logitstore reproduce {recipe.name} --scale {scale} --seeds {setting.seeds}"
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "claim": recipe.claim,
        "notes": recipe.notes,
        "command": command,
        "scale": scale,
        "seeds": setting.seeds,
        "figures": list(recipe.table.figures),
        "baseline": recipe.table.baseline,
        "rows": [vars(line) for line in lines.values()],
        "effects": [vars(_finding(effect, lines)) for effect in setting.effects()],
        "results": recipe.results.model_dump(mode="json"),
    }


def _lines(recipe: Recipe, cells: Mapping[str, Cell]) -> dict[str, Line]:
    figures = recipe.table.figures
    values = {
        cell.label: {
            name: tuple(_figure(place, name, recipe.name) for place in cell.places)
            for name in figures
        }
        for cell in cells.values()
    }
    found = {}
    for label, cell in cells.items():
        base = recipe.table.baseline
        gains = None
        if base is not None and label != base and cell.seeded and cells[base].seeded:
            gains = paired(values[label][figures[0]], values[base][figures[0]]).values
        found[label] = Line(label=label, values=values[label], gains=gains)
    return found


def _finding(effect: Effect, lines: Mapping[str, Line]) -> Finding:
    row, over = (lines[label].values[effect.figure] for label in effect.rows)
    gain = paired(row, over) if effect.wanted == "higher" else paired(over, row)
    return Finding(
        says=effect.says,
        figure=effect.figure,
        gain=gain.mean,
        deviation=gain.deviation,
        samples=gain.n,
        verdict=gain.verdict,
    )


def _figure(place: Path, name: str, recipe: str) -> float:
    """One figure of a run's result, or of what a step saved."""
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
