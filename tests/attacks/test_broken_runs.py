"""A run's folder in which files are damaged gives one clear error, and so do odd checkpoints.

Only commands are used here.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from logitstore.cli import app

TRAIN, TEST = "digits?train=true&samples=0:120", "digits?train=false&samples=0:60"
Damage = Callable[[Path], None]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def training(out: Path) -> Result:
    return run(
        *("train", "--data", TRAIN, "--test", TEST, "--student", "mlp?hidden=8", "--epochs", 1),
        *("--omit-class", 3, "--device", "cpu", "--out", out),
    )


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("honest") / "run"
    assert training(out).exit_code == 0
    return out


def text(name: str, content: str) -> Damage:
    return lambda run: (run / name).write_text(content) and None


def first_half(name: str) -> Damage:
    def damage(run: Path) -> None:
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: len(data) // 2])

    return damage


def replaced(name: str, make: Callable[[Path], Any]) -> Damage:
    def damage(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return damage


def setting(name: str, key: str, value: object) -> Damage:
    def damage(run: Path) -> None:
        document = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**document, key: value}))

    return damage


def line(content: str) -> Damage:
    def damage(run: Path) -> None:
        key = content.partition("=")[0]
        lines = (run / "config.toml").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(key)]
        (run / "config.toml").write_text("\n".join([*kept, content]) + "\n")

    return damage


FILES = ("config.toml", "inputs.json", "result.json", "metrics.jsonl", "model.safetensors")
DAMAGES: dict[str, Damage] = {
    **{f"half of {name}": first_half(name) for name in FILES if name != "config.toml"},
    **{f"a pipe as {name}": replaced(name, os.mkfifo) for name in FILES},
    **{f"a folder as {name}": replaced(name, Path.mkdir) for name in FILES},
    **{f"a link to itself as {name}": replaced(name, lambda p: p.symlink_to(p)) for name in FILES},
    "no inputs.json": lambda run: (run / "inputs.json").unlink(),
    **{
        f"{content[:8]} as {name}": text(name, content)
        for name in ("inputs.json", "result.json", "metrics.jsonl")
        for content in ("[]\n", "null\n", "1\n", "{}\n", "[" * 100_000)
    },
    "a figure that is text": setting("result.json", "test", "x"),
    "figures in a list": setting("result.json", "metrics", []),
    "a line without figures": text("metrics.jsonl", '{"epoch": 1}\n'),
    "a figure that is text in a line": text("metrics.jsonl", '{"epoch": 1, "val_accuracy": "x"}\n'),
    "10¹² classes": setting("inputs.json", "classes", 10**12),
    "-1 classes": setting("inputs.json", "classes", -1),
    "images of 10¹⁸ pixels": setting("inputs.json", "input_shape", [10**6] * 3),
    "an unknown transform": setting("inputs.json", "view_spec", [{"name": "X"}]),
    "a class map that is a list": setting("inputs.json", "class_map", [1]),
    "a student that is a number": line("student = 5"),
    "a method that is a number": line("method = 5"),
    "a method that is a list": line('method = ["a"]'),
    "a deep array": line("method = " + "[" * 20_000),
    "a number of 5000 digits": line("epochs = " + "9" * 5000),
}
COMMANDS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "evaluate": lambda run: ("evaluate", run, "--data", TEST),
    "report": lambda run: ("report", run, "--out", run.parent / "r.html"),
    "build": lambda run: (
        *("build", "--teacher", run, "--data", TEST, "--out", run.parent / "b.zarr"),
        "--dry-run",
    ),
    "correct-bias": lambda run: ("correct-bias", run, "--data", TEST),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_an_error_of_one_line(name: str, honest: Path, tmp_path: Path) -> None:
    failed = 0
    for place, command in enumerate((*COMMANDS.values(), None)):
        damaged = tmp_path / str(place) / "run"
        shutil.copytree(honest, damaged)
        DAMAGES[name](damaged)
        result = training(damaged) if command is None else run(*command(damaged))
        assert isinstance(result.exception, SystemExit | None), repr(result.exception)
        failed += result.exit_code != 0
        if result.exit_code:
            assert result.exit_code in (1, 2)
            assert result.stderr.count("error:") == 1
            assert str(damaged) in result.stderr or "transform" in result.stderr, result.stderr
    assert failed


@pytest.mark.timeout(20)
@pytest.mark.parametrize("command", ["evaluate", "report", "build"])
def test_a_large_settings_file_is_not_parsed(command: str, honest: Path, tmp_path: Path) -> None:
    """The time to parse a dotted key grows with its length squared: 100 kB took a minute."""
    shutil.copytree(honest, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text() + ".".join(["a"] * 50_000) + " = 1\n")
    result = run(*COMMANDS[command](tmp_path / "run"))
    assert result.exit_code == 2, result.output
    assert "expected at most" in result.stderr
    result = run("train", "--config", config, "--out", tmp_path / "new")
    assert result.exit_code == 2


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "torch", "old torch", "module"])
def test_a_checkpoint_that_needs_pickle_is_explained(protocol: int | str, tmp_path: Path) -> None:
    path = tmp_path / "t.pth"
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({"a": _Runs()}, protocol=protocol))
    elif protocol == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        new = protocol == "torch"
        torch.save({"a": _Runs()}, path, _use_new_zipfile_serialization=new)
    result = run(
        *("build", "--teacher", path, "--arch", "mlp", "--data", TEST),
        *("--out", tmp_path / "x.zarr"),
    )
    assert result.exit_code == 2, result.output
    assert "needs pickle, which can run any code" in result.stderr
    assert "save model.state_dict()" in result.stderr
