"""The same command goes on: killed, interrupted or out of disk, a run ends in the same bytes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.errors import Damaged, InputError, MismatchError, Unfinished
from logitstore.precompute.data.sources import open_dataset
from logitstore.trainer import Result, TrainConfig, train
from logitstore.trainer.run.folder import RunFolder
from tests.support.runs import Listener, history
from tests.support.students import STUDENTS

# One process imports torch and forks a child for each attempt; a child kills itself as it is told.
KILLED = """
import json, os, signal, sys
from logitstore.trainer import TrainConfig, train

def die(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(number, function):
    calls = []
    def called(*arguments, **given):
        calls.append(1)
        if len(calls) == number:
            die()
        return function(*arguments, **given)
    return called

class Watched:
    def start(self, task, total, unit): pass
    def advance(self, count): pass
    def message(self, text): pass

def attempt(config, moment, number):
    watched = Watched()
    if moment == "step":
        watched.advance = at_call(number, watched.advance)
    if moment == "rename":
        os.replace = at_call(number, os.replace)
    if moment == "time":
        signal.signal(signal.SIGALRM, die)
        signal.setitimer(signal.ITIMER_REAL, number)
    train(TrainConfig(**config), progress=watched)

config, attempts = json.loads(sys.argv[1])
for moment, number in attempts:
    child = os.fork()
    if not child:
        attempt(config, moment, number)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def config(bound_store: Callable[..., Path], tmp_path: Path) -> TrainConfig:
    """Eight epochs of four steps with all that has state: BatchNorm, dropout, momentum, views."""
    digits = open_dataset("digits?train=true&samples=0:500")
    images = np.stack([np.asarray(digits.image(i)) for i in range(500)])
    np.savez(tmp_path / "digits.npz", x=images, y=digits.labels)
    data = f"npz:{tmp_path}/digits.npz?classes=10&samples=0:400"
    logits = np.random.default_rng(0).standard_normal((2, 400, 10)).astype(np.float32)
    (tmp_path / "net.py").write_text(STUDENTS)
    return TrainConfig(
        data=data,
        student=f"{tmp_path}/net.py:student",
        store=str(bound_store(tmp_path / "s.zarr", data, logits)),
        method="kd",
        limit=390,
        val=f"npz:{tmp_path}/digits.npz?classes=10&samples=400:500",
        epochs=8,
        warmup_epochs=1,
        snapshots=(2, 8),
        out=str(tmp_path / "undisturbed"),
        device="cpu",
        checkpoint_seconds=1e-9,
    )


def outcome(out: str) -> dict[str, Any]:
    """What must not depend on interruptions: all weights, and the metrics but for their times."""
    run = Path(out)
    weights = {path.name: path.read_bytes() for path in run.rglob("*.safetensors")}
    return {"metrics": history(out), **weights}


def left_over(out: str) -> list[Path]:
    return [path for path in Path(out).rglob("*") if path.name.endswith(".tmp")]


def test_a_run_killed_anywhere_ends_in_the_same_bytes(config: TrainConfig) -> None:
    train(config)
    attempts = [
        ("step", 1),
        ("rename", 2),
        ("step", 3),
        ("rename", 5),
        ("step", 6),
        ("time", 0.01),
        ("rename", 6),
        ("time", 0.03),
        ("rename", 4),
        ("none", 0),
    ]
    killed = replace(config, out=config.out.replace("undisturbed", "killed"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, json.dumps([asdict(killed), attempts])],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.split() == ["-9"] * 9 + ["0"], done.stderr
    assert outcome(killed.out) == outcome(config.out)
    assert left_over(killed.out) == []


@pytest.mark.parametrize("change", [{}, {"optimizer": "adamw"}, {"nesterov": True}])
def test_ctrl_c_leaves_a_run_that_goes_on(config: TrainConfig, change: dict[str, Any]) -> None:
    config = replace(config, **change)
    whole = train(config)
    for seconds, name in [(1e-9, "every step"), (1e9, "every epoch")]:
        part = replace(config, out=f"{config.out} {name}", checkpoint_seconds=seconds)
        for steps in (2, 7):
            with pytest.raises(KeyboardInterrupt):
                train(part, progress=Listener(steps))
        resumed = train(replace(part, workers=2))
        assert outcome(part.out) == outcome(config.out)
        assert resumed.metrics == whole.metrics
        assert resumed.best_epoch == whole.best_epoch


def test_a_full_disk_stops_a_run_that_goes_on_later(config: TrainConfig) -> None:
    train(config)
    part = replace(config, out=f"{config.out} full")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(Unfinished, match=r"no space left .* run the same command again"):
            train(part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train(part)
    assert outcome(part.out) == outcome(config.out)
    assert left_over(part.out) == []


def test_a_finished_run_is_returned_at_once(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config)
    (tmp_path / "s.zarr").rename(tmp_path / "moved.zarr")
    before = outcome(config.out)
    again: Result = train(config)
    assert again == first
    assert outcome(config.out) == before


def test_a_changed_run_is_refused_and_a_changed_way_of_running_it_is_not(
    config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Listener(6))
    before = outcome(config.out)
    with pytest.raises(
        MismatchError, match=r"with batch_size = 128, asked for is 64: use another --out"
    ):
        train(replace(config, batch_size=64))
    with pytest.raises(MismatchError, match=r"with method = 'kd', asked for is 'ce'"):
        train(replace(config, method="ce", store=None))
    assert outcome(config.out) == before
    (tmp_path / "s.zarr").rename(tmp_path / "moved.zarr")
    moved = replace(config, store=str(tmp_path / "moved.zarr"), workers=2, patience=5.0)
    assert train(moved).epochs == 8


def test_another_teacher_is_refused_in_an_unfinished_run_and_in_a_finished_one(
    config: TrainConfig, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Listener(6))
    other = bound_store(tmp_path / "o.zarr", config.data, np.zeros((2, 400, 10), np.float32))
    for _ in ("unfinished", "finished"):
        with pytest.raises(MismatchError, match=r"was begun with root '[0-9a-f]{64}', which is '"):
            train(replace(config, store=str(other)))
        with pytest.raises(MismatchError, match="with snapshot = None, asked for is 'teacher'"):
            train(replace(config, snapshot="teacher"))
        train(config)


def test_what_is_refused_is_refused_before_rows_are_decoded(
    config: TrainConfig, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    other = bound_store(tmp_path / "o.zarr", config.data, np.zeros((2, 400, 10), np.float32))
    interrupted, refused = Listener(6), Listener(1)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=interrupted)
    with pytest.raises(MismatchError, match="was begun with root"):
        train(replace(config, store=str(other)), progress=refused)
    assert "decoding teacher" in interrupted.tasks
    assert refused.tasks == []


def test_a_folder_of_something_else_is_refused_untouched(
    config: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("once")
    with pytest.raises(InputError, match=r"not empty and not a training run .*chapter1\.tex"):
        train(replace(config, out=str(folder)))
    assert [path.name for path in folder.iterdir()] == ["chapter1.tex"]


def test_two_processes_cannot_train_in_one_folder(config: TrainConfig) -> None:
    with (
        RunFolder(config.out).lock(),
        pytest.raises(InputError, match="another process is training in this folder"),
    ):
        train(config)


def test_a_damaged_checkpoint_is_named(config: TrainConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Listener(6))
    last = Path(config.out) / "checkpoints/last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(Damaged, match=r"last\.safetensors: not a whole checkpoint"):
        train(config)
