"""Recipes: every one spells out commands that the real command line takes, at both scales.

A tiny one runs for real, and its table says what its runs' results say.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from logitstore.cli import app
from logitstore.cli.train import train_config
from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.trainer.studies.recipes.recipe import Recipe, load_recipe, recipe_names
from logitstore.trainer.studies.recipes.run import list_recipes, reproduce, set_up
from logitstore.trainer.studies.recipes.scaled import Setting

TINY = """
title = "Distillation on digits"
paper = "Nobody 2026"
claim = "Soft targets help."

[variables]
learn = "train --data digits --limit 200 --student mlp?hidden=8 --epochs 2 --seed {seed}"

[scales.small]
cost = "seconds"
seeds = 2

[scales.small.variables]
test = "digits?train=false"
weights = ["0.5", "0.9"]

[[steps]]
run = "train --data digits --limit 200 --student mlp?hidden=16 --epochs 2 --out {out}/teacher"

[[steps]]
run = "build --teacher {out}/teacher --data digits --out {out}/digits.zarr --snapshot teacher"

[[steps]]
for = { seed = "seeds" }
run = "{learn} --test {test} --method ce --out {out}/ce-{seed}"

[[steps]]
for = { weight = "weights", seed = "seeds" }
run = \"\"\"
{learn} --test {test} --method kd --ce-weight 0.1 --kd-weight {weight}
--store {out}/digits.zarr --out {out}/kd-{weight}-{seed}\"\"\"

[[steps]]
run = "inspect {out}/digits.zarr --json"
save = "{out}/store.json"

[table]
figures = ["test.top1", "test.nll"]
baseline = "ce"

[[table.rows]]
label = "ce"
at = "{out}/ce-{seed}"

[[table.rows]]
for = { weight = "weights" }
label = "kd {weight}"
at = "{out}/kd-{weight}-{seed}"

[[effects]]
says = "KD beats cross-entropy"
row = "kd 0.9"
over = "ce"
figure = "test.nll"
wanted = "lower"

[results]
source = "not recovered"
"""


def run(arguments: list[str]) -> Any:
    return app(arguments, standalone_mode=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", recipe_names())
def test_every_command_of_a_recipe_is_one_that_the_command_line_takes(
    name: str, scale: str
) -> None:
    setting = set_up(name, root=Path("the data"), out=Path("an out {folder}"), scale=scale, seeds=2)
    made: set[Path | None] = set()
    for command in setting.commands():
        ctx = parsed(list(command.arguments))
        if ctx.info_name == "train":
            config = train_config({**ctx.params, "ctx": ctx})
            assert Path(config.out) not in made
            made.add(Path(config.out))
        made.add(command.save)
    assert all(place in made for cell in setting.cells().values() for place in cell.places)


command_line = cache(partial(typer.main.get_command, app))


def parsed(arguments: list[str]) -> typer.Context:
    """The context of a command that is not run; options that it does not know are refused."""
    found = command_line()
    ctx = typer.Context(found)
    while isinstance(found, TyperGroup):
        name, found, arguments = found.resolve_command(ctx, arguments)
        assert found is not None
        ctx = typer.Context(found, info_name=name, parent=ctx)
    return found.make_context(ctx.info_name, arguments, parent=ctx.parent)


def test_the_recipes_cover_the_five_papers_and_say_what_they_cost() -> None:
    listed = list_recipes()
    for paper in ("1503.02531", "1910.01348", "1909.11723", "2203.08679", "2006.12000"):
        assert any(paper in entry["paper"] for entry in listed)
    assert all(set(entry["cost"]) == {"small", "paper"} for entry in listed)


def test_a_recipe_runs_once_and_its_table_says_what_the_results_say(
    tiny: Path, tmp_path: Path
) -> None:
    setting = set_up(str(tiny), root=tmp_path, out=tmp_path / "out")
    found = reproduce(setting, run)
    written = {path: path.stat().st_mtime_ns for path in setting.out.rglob("*") if path.is_file()}
    table = (setting.out / "table.md").read_text()
    results = [
        [
            json.loads((setting.out / f"{name}-{seed}/result.json").read_text())["test"]
            for seed in (0, 1)
        ]
        for name in ("ce", "kd-0.5", "kd-0.9")
    ]
    for row, runs in zip(found["rows"], results, strict=True):
        assert list(row["values"]["test.top1"]) == [figures["top1"] for figures in runs]
    shares = [100 * figures["top1"] for figures in results[2]]
    gains = [a - 100 * b["top1"] for a, b in zip(shares, results[0], strict=True)]
    assert f"| kd 0.9 | 2 | {mean(shares):.2f} ± {stdev(shares):.2f} |" in table
    assert f"| {mean(gains):+.2f} ± {stdev(gains):.2f} |" in table
    gained = [a["nll"] - b["nll"] for a, b in zip(results[0], results[2], strict=True)]
    assert found["effects"][0]["gain"] == pytest.approx(mean(gained))
    assert json.loads((setting.out / "store.json").read_text())["output"]["classes"] == 10

    assert reproduce(setting, run) == found
    again = {path: path.stat().st_mtime_ns for path in setting.out.rglob("*") if path.is_file()}
    assert {path for path in again if again[path] != written[path]} <= {
        setting.out / "table.json",
        setting.out / "table.md",
    }
    assert (setting.out / "table.md").read_text() == table


def test_a_failing_command_stops_the_recipe_and_is_named_with_what_it_said(
    tiny: Path, tmp_path: Path
) -> None:
    tiny.write_text(TINY.replace("--snapshot teacher", "--snapshot ../up"))
    setting = set_up(str(tiny), root=tmp_path, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"(?s)build --teacher .* ended with 2: .*\.\./up"):
        reproduce(setting, run)
    assert not (setting.out / "table.json").exists()


def test_data_that_are_not_there_are_named_before_any_work(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(TINY.replace("seeds = 2\n", 'seeds = 2\nneeds = ["some.npz"]\n'))
    setting = set_up(str(tiny), root=tmp_path / "wrong", out=tmp_path / "out")
    with pytest.raises(NotFound, match=r"wrong/some\.npz: there is no such file.*--root .*wrong"):
        reproduce(setting, run)
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_must_be_there(tiny: Path, tmp_path: Path) -> None:
    def asked(name: str = str(tiny), **given: Any) -> Setting:
        return set_up(name, root=tmp_path, out=tmp_path / "out", **given)

    with pytest.raises(InputError, match="--seeds must be at least 1, not 0"):
        asked(seeds=0)
    with pytest.raises(UnknownName, match="unknown scale of recipe tiny 'paper'"):
        asked(scale="paper")
    with pytest.raises(UnknownName, match="did you mean 'zhao-dkd'"):
        asked("zhao-kdk")
    with pytest.raises(NotFound, match=r"no\.toml: there is no such recipe"):
        asked("no.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{weight}\n", "{wieght}\n", r"recipe tiny, step 4: unknown variable \{wieght\}"),
        ('"weights", seed', '"heights", seed', "recipe tiny, step 4: 'heights' in for is no list"),
        ("--method ce", "--method {weights}", r"step 3: \{weights\} .* is a list"),
        ("--seed {seed}", "--seed {learn}", r"step 3: \{learn\} is filled with itself"),
        ('row = "kd 0.9"', 'row = "kd 0.8"', "unknown row of recipe tiny 'kd 0.8'"),
        ('figure = "test.nll"', 'figure = "test.nil"', "no figure 'test.nil' in the table"),
        ("claim =", "clam =", "recipe .*tiny.toml: claim: field required"),
        ("[results]", "[results]\nnote = 1", "tiny.toml: results.note: extra inputs"),
        ("[table]", "[table", "tiny.toml: not a readable TOML file"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_with_its_place(
    tiny: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in TINY
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises((InputError, UnknownName), match=said):
        set_up(str(tiny), root=tmp_path, out=tmp_path / "out").commands()


def test_paths_may_hold_spaces_and_braces(tiny: Path) -> None:
    recipe: Recipe = load_recipe(str(tiny))
    out = Path("an out {seed}")
    setting = Setting(recipe=recipe, scale="small", root=Path("r"), out=out, seeds=1)
    assert setting.commands()[0].arguments[-1] == "an out {seed}/teacher"
    assert str(setting.commands()[0]).endswith("--out 'an out {seed}/teacher'")


def test_the_command_line_lists_recipes_and_prints_commands_without_running_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["reproduce"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in recipe_names())
    run(["reproduce", "zhao-dkd", "--root", "/data", "--out", str(tmp_path / "o"), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("logitstore build --teacher /data/teachers/resnet56-4bfd9763.th")
    assert not (tmp_path / "o").exists()
