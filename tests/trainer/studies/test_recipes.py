"""Recipes: every one spells out commands that the real command line takes, at both scales.

A tiny one runs for real, and its table says what its runs' results say.
"""

from __future__ import annotations

import json
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from logitstore.cli import app
from logitstore.cli.settings import command_settings
from logitstore.cli.train import train_config
from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.precompute.building.config import BuildConfig
from logitstore.trainer.studies import recipes
from logitstore.trainer.studies.recipes import load_recipe, recipe_names
from logitstore.trainer.studies.reproduce import list_recipes, reproduce, set_up
from logitstore.trainer.studies.scaled_recipe import ScaledRecipe

TINY = """
from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings

SMALL = Settings(
    cost="seconds",
    seeds=2,
    needs=(),
    train="digits",
    test="digits?train=false",
    student="mlp?hidden=8",
    epochs=2,
    batch=32,
    optimise="",
    normalise="",
    teacher_data="digits",
    teacher_epochs=2,
)
WEIGHTS = ("0.5", "0.9")


def scale(s):
    learn = f"train --data {s.train} --limit 200 --student {s.student} --epochs 2 --seed $SEED"
    learn += f" --test {s.test}"
    return Scale(
        s,
        steps=(
            "train --data digits --limit 200 --student mlp?hidden=16 --epochs 2 --out $OUT/teacher",
            "build --teacher $OUT/teacher --data digits --out $OUT/digits.zarr --snapshot teacher",
            f"{learn} --method ce --out $OUT/ce-$SEED",
            *(
                f"{learn} --method kd --ce-weight 0.1 --kd-weight {weight} "
                f"--store $OUT/digits.zarr --out $OUT/kd-{weight}-$SEED"
                for weight in WEIGHTS
            ),
            "inspect $OUT/digits.zarr --json > $OUT/store.json",
        ),
        rows={"ce": "ce-$SEED", **{f"kd {weight}": f"kd-{weight}-$SEED" for weight in WEIGHTS}},
        effects=(
            Effect("KD beats ce", "kd 0.9", over="ce", figure="test.nll", better="lower"),
        ),
    )


def recipe():
    return Recipe(
        title="Distillation on digits",
        paper="Nobody 2026",
        claim="Soft targets help.",
        scales={"small": scale(SMALL)},
        figures=("test.top1", "test.nll"),
        baseline="ce",
        source="not recovered",
    )
"""


COMMANDS_OF_VERSION_0_3 = {
    "cho-early-stopped-kd": "68d959477a216c3b",
    "cho-early-stopped-teacher": "c2bc41ec45f76094",
    "cho-ensemble": "9945ca0c2dfd7a63",
    "cho-sequential": "261f8527a53f464d",
    "hinton-few-labels": "f660e8de45fb004a",
    "hinton-mnist": "a76736270b4fbe90",
    "hinton-omitted-class": "2104898e45fb8914",
    "hinton-specialists": "053be32edd2699e4",
    "kim-ps-kd": "630a264c027358dd",
    "logit-methods": "086ee1d853a45572",
    "yuan-de-kd": "29b9aaef76742ab7",
    "yuan-re-kd": "034923446af1669a",
    "yuan-tf-kd-reg": "d33ce5649fa68fa8",
    "yuan-tf-kd-self": "7640abd27d4dc08d",
    "zhao-autoaugment": "8e35beba7792e65a",
    "zhao-confidence": "47deaed0741f1bf0",
    "zhao-dkd": "d76305352e3f6d58",
    "zhao-linear-probe": "c822bd4324166e8b",
    "zhao-noisy-labels": "d14041280d604af3",
    "zhao-tckd-nckd": "81980db94c9e7a36",
}
"""Digests of each recipe's commands at both scales, with two seeds; stored runs rest on them."""


def run(arguments: list[str]) -> Any:
    return app(arguments, standalone_mode=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", recipe_names())
def test_every_command_of_a_recipe_is_one_that_the_command_line_takes(
    name: str, scale: str
) -> None:
    scaled = set_up(name, root=Path("the data"), out=Path("an out $SEED"), scale=scale, seeds=2)
    made: set[Path | None] = set()
    for command in scaled.commands():
        ctx = parsed(list(command.arguments))
        if ctx.info_name == "train":
            config = train_config(None, command_settings(ctx))
            assert Path(config.out) not in made
            made.add(Path(config.out))
        if ctx.info_name == "build":
            assert BuildConfig(**command_settings(ctx)).teachers
        made.add(command.save)
    assert all(place in made for places in scaled.rows().values() for place in places)


def test_no_recipe_runs_other_commands_than_the_stored_runs_of_it_did() -> None:
    digests = {}
    for name in recipe_names():
        lines = [
            str(command)
            for scale in ("small", "paper")
            for command in set_up(
                name, root=Path("data"), out=Path("out"), scale=scale, seeds=2
            ).commands()
        ]
        digests[name] = sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert digests == COMMANDS_OF_VERSION_0_3


def test_our_table_of_every_recipe_is_beside_it() -> None:
    text = (Path(recipes.__file__).parent / "RESULTS.md").read_text()
    for name in recipe_names():
        title = load_recipe(name)[1].title
        assert f"## {title} (`{name}`)" in text
        _, after = text.split(f"(`{name}`)\n")[:2]
        for effect in load_recipe(name)[1].scales["small"].effects:
            assert f"\n* {effect.says}" in after.split("\n## ")[0]


command_line = cache(partial(typer.main.get_command, app))


def parsed(arguments: list[str]) -> typer.Context:
    """Parse a command without running it; options that it does not know are refused."""
    command = command_line()
    ctx = typer.Context(command)
    while isinstance(command, TyperGroup):
        name, command, arguments = command.resolve_command(ctx, arguments)
        assert command is not None
        ctx = typer.Context(command, info_name=name, parent=ctx)
    return command.make_context(ctx.info_name, arguments, parent=ctx.parent)


def test_the_recipes_cover_the_five_papers_and_say_what_they_cost() -> None:
    entries = list_recipes()
    for paper in ("1503.02531", "1910.01348", "1909.11723", "2203.08679", "2006.12000"):
        assert any(paper in entry["paper"] for entry in entries)
    assert all(set(entry["cost"]) == {"small", "paper"} for entry in entries)


def test_a_recipe_runs_once_and_its_table_says_what_the_results_say(
    tiny: Path, tmp_path: Path
) -> None:
    scaled = set_up(str(tiny), root=tmp_path, out=tmp_path / "out")
    made = reproduce(scaled, run)
    document = made.document()
    written = {path: path.stat().st_mtime_ns for path in scaled.out.rglob("*") if path.is_file()}
    table = (scaled.out / "table.md").read_text()
    results = [
        [
            json.loads((scaled.out / f"{name}-{seed}/result.json").read_text())["test"]
            for seed in (0, 1)
        ]
        for name in ("ce", "kd-0.5", "kd-0.9")
    ]
    for row, runs in zip(document["rows"], results, strict=True):
        assert list(row["values"]["test.top1"]) == [figures["top1"] for figures in runs]
    shares = [100 * figures["top1"] for figures in results[2]]
    gains = [a - 100 * b["top1"] for a, b in zip(shares, results[0], strict=True)]
    assert f"| kd 0.9 | 2 | {mean(shares):.2f} ± {stdev(shares):.2f} |" in table
    assert f"| {mean(gains):+.2f} ± {stdev(gains):.2f} |" in table
    gained = [a["nll"] - b["nll"] for a, b in zip(results[0], results[2], strict=True)]
    assert document["effects"][0]["gain"] == pytest.approx(mean(gained))
    assert json.loads((scaled.out / "store.json").read_text())["output"]["classes"] == 10

    assert json.loads((scaled.out / "table.json").read_text()) == document
    assert reproduce(scaled, run) == made
    again = {path: path.stat().st_mtime_ns for path in scaled.out.rglob("*") if path.is_file()}
    assert {path for path in again if again[path] != written[path]} <= {
        scaled.out / "table.json",
        scaled.out / "table.md",
    }
    assert (scaled.out / "table.md").read_text() == table


def test_a_failing_command_stops_the_recipe_and_is_named_with_what_it_said(
    tiny: Path, tmp_path: Path
) -> None:
    tiny.write_text(TINY.replace("--snapshot teacher", "--snapshot ../up"))
    scaled = set_up(str(tiny), root=tmp_path, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"(?s)build --teacher .* ended with 2: .*\.\./up"):
        reproduce(scaled, run)
    assert not (scaled.out / "table.json").exists()


def test_data_that_are_not_there_are_named_before_any_work(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(TINY.replace("needs=()", 'needs=("some.npz",)'))
    scaled = set_up(str(tiny), root=tmp_path / "wrong", out=tmp_path / "out")
    with pytest.raises(NotFound, match=r"wrong/some\.npz: there is no such file.*--root .*wrong"):
        reproduce(scaled, run)
    assert not (tmp_path / "out").exists()


def test_a_recipe_a_scale_and_seeds_must_be_there(tiny: Path, tmp_path: Path) -> None:
    def scaled_recipe(name: str = str(tiny), **options: Any) -> ScaledRecipe:
        return set_up(name, root=tmp_path, out=tmp_path / "out", **options)

    with pytest.raises(InputError, match="--seeds must be at least 1, not 0"):
        scaled_recipe(seeds=0)
    with pytest.raises(UnknownName, match="unknown scale of recipe tiny 'paper'"):
        scaled_recipe(scale="paper")
    with pytest.raises(UnknownName, match="did you mean 'zhao-dkd'"):
        scaled_recipe("zhao-kdk")
    with pytest.raises(NotFound, match=r"no\.py: there is no such recipe"):
        scaled_recipe("no.py")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "$OUT/digits.zarr --json",
            "$OUT/$X.zarr --json",
            r"recipe tiny, step 6: .* other than .*X",
        ),
        ('"kd 0.9", over', '"kd 0.8", over', r"recipe .*tiny\.py: unknown row 'kd 0.8'"),
        ('baseline="ce"', 'baseline="de"', r"tiny\.py: unknown row 'de': did you mean 'ce'"),
        ('figure="test.nll"', 'figure="test.nil"', "no figure 'test.nil' in the table"),
        ('"ce": "ce-$SEED"', '"ce": "ce-0"', "compares a row of seeds with a single run"),
        ("claim=", "clam=", r"recipe .*tiny\.py: .* unexpected keyword argument 'clam'"),
        ("return Recipe(", "return dict(", r"tiny\.py: recipe\(\) returned a dict, not a Recipe"),
        ("def recipe():", "def receipt():", "has no callable 'recipe'"),
        ("def recipe():", "def recipe(:", r"tiny\.py.*SyntaxError"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_with_its_place(
    tiny: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in TINY
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises((InputError, UnknownName), match=said):
        set_up(str(tiny), root=tmp_path, out=tmp_path / "out").commands()


def test_paths_may_hold_spaces_and_variables(tiny: Path) -> None:
    scaled = set_up(str(tiny), root=Path("r"), out=Path("an out $SEED"), seeds=1)
    assert scaled.commands()[0].arguments[-1] == "an out $SEED/tiny/teacher"
    assert str(scaled.commands()[0]).endswith("--out 'an out $SEED/tiny/teacher'")


def test_the_command_line_lists_recipes_and_prints_commands_without_running_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["reproduce"])
    output = capsys.readouterr().out
    assert all(name in output for name in recipe_names())
    run(["reproduce", "zhao-dkd", "--root", "/data", "--out", str(tmp_path / "o"), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("logitstore build --teacher /data/teachers/resnet56-4bfd9763.th")
    assert not (tmp_path / "o").exists()
