"""What the command line answers without loading torch: lists, helps and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "numpy", "zarr", "scipy")
TRAIN = ("train", "--data", "digits", "--student", "mlp", "--out", "run")
SWEEP = ("sweep", *TRAIN[1:])
BUILD = ("build", "--teacher", "t.pth", "u.pth", "--data", "digits", "--out", "s")
STORE = ("--store", "nowhere", "--val", "split:0.1")


def answer(*arguments: str, where: Path) -> tuple[int, str, list[str]]:
    """Exit code, output, and the heavy packages that a command loaded."""
    code = (
        "import sys; from logitstore.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print('heavy:', *[name for name in "
        f"{HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=where
    )
    said, _, heavy = done.stdout.rpartition("heavy:")
    return done.returncode, said + done.stderr, heavy.split()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("methods",),
        ("methods", "dkd", "--json"),
        *(
            (name, "-h")
            for name in ("build", "plan", "train", "sweep", "report", "reproduce", "serve")
        ),
    ],
)
def test_what_needs_no_tensor_loads_none(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, said, heavy = answer(*arguments, where=tmp_path)
    assert (code, heavy) == (0, []), said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*TRAIN, "--method", "kd"), "give --store STORE"),
        ((*TRAIN, "--schedule", "step"), "needs --milestones"),
        ((*TRAIN, "--method", "kdd"), "did you mean 'kd'"),
        ((*TRAIN, "--method", "kd", "--store", "s", "--temperature", "0"), "must be above 0"),
        ((*TRAIN, "--temperature", "hot"), "--temperature 'hot': expected a number"),
        ((*TRAIN, "--temprature", "4"), "did you mean '--temperature'"),
        ((*TRAIN, "--epochs", "0"), "epochs must be at least 1, not 0"),
        (("train", "--data", "digits"), "--student is missing"),
        (("train", "--config", "nowhere.toml"), "nowhere.toml: there is no such file"),
        (("methods", "dkb"), "did you mean 'dkd'"),
        (("build", "--data", "digits", "--out", "s"), "--teacher is missing"),
        ((*BUILD, "--views", "0"), "views must be at least 1, not 0"),
        ((*BUILD, "--shard-rows", "100"), "shard_rows must be a power of two, not 100"),
        ((*BUILD, "--archs", "mlp"), "did you mean '--arch'"),
        (SWEEP, "give --store STORE"),
        ((*SWEEP, *STORE[:2]), "give --val DATA, or --val split:0.1"),
        ((*SWEEP, *STORE, "--schedule", "step"), "needs --milestones"),
        ((*SWEEP, *STORE, "--methods", "kd,kdd"), "did you mean 'kd'"),
        ((*SWEEP, *STORE, "--beta", "2"), "(ce, kd) has beta: drop --beta"),
        ((*SWEEP, *STORE, "--seeds", "0,x"), "expected whole numbers such as 0,1,2"),
        (("sweep", *STORE, "--data", "digits", "--out", "run"), "--student is missing"),
    ],
)
def test_a_refusal_that_needs_no_tensor_loads_none(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    code, said, heavy = answer(*arguments, where=tmp_path)
    assert (code, heavy) == (2, []), said
    assert says in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("train --ba", ["--batch-size"]),
        ("train --temp", ["--temperature"]),
        ("train --conf", ["--config"]),
        ("build --dr", ["--dry-run"]),
        ("build --shard", ["--shard-rows"]),
        ("sweep --seed", ["--seeds"]),
        ("sweep --lr", ["--lr", "--lr-decay"]),
    ],
)
def test_a_shell_completes_the_options_of_settings(typed: str, completed: list[str]) -> None:
    words = f"logitstore {typed}"
    asked = {"_LOGITSTORE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from logitstore.cli import app; app(prog_name='logitstore')"],
        capture_output=True,
        text=True,
        env={**os.environ, **asked},
    )
    assert done.stdout.split() == completed, done.stderr
