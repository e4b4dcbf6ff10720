"""``logitstore demo``: the whole way on scikit-learn's digits, by the commands that a user types.

A teacher is trained and three of its epochs are kept, one store of the three is built and served on
loopback, and small students learn over HTTP from 100 images: with cross-entropy alone, and with the
logits of each teacher.  This file only composes commands and averages what their runs report.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from logitstore.cli.app import app
from logitstore.errors import InputError
from logitstore.text import size, table

commands = typer.Typer()

Run = Callable[[list[str]], Any]
"""Runs a command, given its arguments, and returns its exit status, if any."""

TEACHER_EPOCHS = (1, 5, 60)
"""Epochs of the teacher that are kept as teachers of their own."""

FEW, FIRST_SEED = 100, 1000
"""Images that the students learn from, and the seed of the first ones."""

DATA, TEST = "digits?train=true", "digits?train=false"


@commands.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the demo keeps its files.")
    ] = Path("demo"),
    seeds: Annotated[int, typer.Option(help="Students for each line of the table.")] = 5,
) -> None:
    """Show the whole way on bundled digits.

    Teachers, a store, a server and students, with the commands above.

    \b
    logitstore demo
    """
    run_demo(lambda arguments: app(arguments, standalone_mode=False), out, seeds=seeds)


def run_demo(run: Run, out: Path, *, seeds: int) -> None:
    """Run the demo's commands with ``run`` in the folder ``out``.

    ``seeds`` students for each line of the table.  What is finished in ``out`` is not done again.
    Raises what the commands raise.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    # Networks of 3,000 weights gain nothing from threads, and spinning ones lose a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.monotonic()
    store, teacher = out / "digits.zarr", out / "teacher"
    _say("A teacher (MLP 2x256) on 1,200 digits; epochs 1, 5 and 60 are kept.")
    _run_visibly(
        run,
        *("train", "--data", DATA, "--student", "mlp?hidden=256,256", "--method", "ce"),
        *("--epochs", str(TEACHER_EPOCHS[-1])),
        *("--snapshots", ",".join(map(str, TEACHER_EPOCHS)), "--val", TEST),
        *("--out", str(teacher)),
    )
    _say("One store of the three teachers' logits; the images are read once.")
    _run_visibly(run, "build", "--teacher", str(teacher), "--data", DATA, "--out", str(store))
    _run_visibly(run, "verify", str(store))
    _say("The store is served on loopback; students see neither teacher nor checkpoint.")
    with _served(store) as url:
        _train_students(run, out, url, seeds)
    _say(*_results(out, seeds))
    _say(
        f"\nTook {time.monotonic() - start:.0f} s. Try next:",
        f"  logitstore inspect {store}",
        f"  logitstore verify {store} --teacher {teacher}/snapshots/epoch-0005.safetensors "
        f"--data '{DATA}' --snapshot epoch-0005",
        f"  logitstore serve {out}",
        f"  logitstore train --data '{DATA}' --student 'mlp?hidden=64' --store {store} "
        f"--snapshot epoch-0005 --method kd --temperature 8 --val '{TEST}' --out {out}/mine",
        f"  tensorboard --logdir {out}",
    )


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def _typed(arguments: Sequence[str]) -> str:
    """Return a command as a user would type it."""
    return f"logitstore {shlex.join(arguments)}"


def _finish(run: Run, arguments: Sequence[str]) -> None:
    code = run(list(arguments))
    if code:
        raise InputError(f"the demo stops: `{_typed(arguments)}` ended with {code}")


def _run_visibly(run: Run, *arguments: str) -> None:
    """Run a command whose output is part of the demo."""
    _say(f"$ {_typed(arguments)}")
    _finish(run, arguments)
    _say("")


def _run_quietly(run: Run, arguments: Sequence[str]) -> None:
    """Run a command without its output."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        _finish(run, arguments)


@contextmanager
def _served(store: Path) -> Iterator[str]:
    """Serve a store with ``logitstore serve`` until the block ends; yields the store's URL."""
    from logitstore.cli.background_server import BackgroundServer, free_port

    port = free_port()
    command = ["serve", str(store), "--port", str(port)]
    _say(f"$ {_typed(command)} &")
    program = [sys.executable, "-m", "logitstore", *command]
    with BackgroundServer(program, f"http://127.0.0.1:{port}") as server:
        yield f"{server.url}/{store.stem}"


class _Group(NamedTuple):
    """Students that differ in their seeds: a line of the table.

    ``images`` None are all; ``epoch`` is the teacher's, None without a teacher.
    """

    images: int | None
    method: str = "ce"
    epoch: int | None = None

    def folder(self, out: Path, seed: int) -> Path:
        """Return the folder of one student's run."""
        teacher = f"-epoch{self.epoch}" if self.epoch else ""
        return out / "students" / f"{self.method}{teacher}-{self.images or 'all'}-seed{seed}"

    def command(self, out: Path, url: str, seed: int) -> list[str]:
        """Return the command that trains one student."""
        command = ["train", "--data", DATA, "--student", "mlp?hidden=32", "--method", self.method]
        if self.epoch:
            command += ["--store", url, "--snapshot", f"epoch-{self.epoch:04d}"]
            command += ["--temperature", "4"]
        if self.images:
            command += ["--limit", str(self.images), "--limit-seed", str(seed)]
        command += ["--epochs", "100" if self.images else "30", "--batch-size", "32"]
        command += ["--seed", str(seed), "--val", TEST]
        return [*command, "--out", str(self.folder(out, seed))]

    def figures(self, out: Path, seeds: int, name: str) -> tuple[float, ...]:
        """Return one figure of each student's run."""
        values = []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            result = json.loads((self.folder(out, seed) / "result.json").read_text())
            values.append(float({**result, **result["metrics"]}[name]))
        return tuple(values)


def _taught(images: int | None) -> list[_Group]:
    """Return the students of so many images that have a teacher."""
    epochs = TEACHER_EPOCHS if images else TEACHER_EPOCHS[-1:]
    return [_Group(images, "kd", epoch) for epoch in epochs]


def _train_students(run: Run, out: Path, url: str, seeds: int) -> None:
    """Train them all; the first seed's commands are shown, the others differ in the seed only."""
    for number in range(seeds):
        seed = FIRST_SEED + number
        for images in (FEW, None):
            for group in (_Group(images), *_taught(images)):
                command = group.command(out, url, seed)
                if number == 0:
                    _say(f"$ {_typed(command)}")
                _run_quietly(run, command)
        done = f"seeds {FIRST_SEED} to {seed} done" if number else f"seed {seed} done"
        _say(f"  {done} ({number + 1} of {seeds})")


def _results(out: Path, seeds: int) -> list[str]:
    """Return the table: test accuracy, paired gain over ce, and what each student cost."""
    from logitstore.reading.opening import open_store
    from logitstore.trainer.studies.seeds import OverSeeds, paired

    snapshots = open_store(out / "digits.zarr").snapshots
    history = [
        json.loads(line) for line in (out / "teacher/metrics.jsonl").read_text().splitlines()
    ]
    header = ("student", "images", "test accuracy", "gain over ce", "teacher's", "bytes", "seconds")
    rows: list[Sequence[str]] = []
    sentences: list[str] = []
    for images in (FEW, None):
        plain = _Group(images).figures(out, seeds, "val_accuracy")
        gains: dict[int, float] = {}
        for group in (_Group(images), *_taught(images)):
            reached = group.figures(out, seeds, "val_accuracy")
            cells = ["", "", ""]
            if group.epoch:
                gain = paired(reached, plain)
                gains[group.epoch] = gain.mean
                teacher = f"{100 * history[group.epoch - 1]['val_accuracy']:.1f}"
                stored = size(snapshots[f"epoch-{group.epoch:04d}"].stored_bytes())
                cells = [gain.cell(1, percent=True), teacher, stored]
            name = f"kd from epoch {group.epoch}" if group.epoch else group.method
            accuracy = OverSeeds(reached).cell(1, percent=True)
            seconds = OverSeeds(group.figures(out, seeds, "seconds")).mean
            rows.append([name, str(images or 1200), accuracy, *cells, f"{seconds:.1f}"])
        best = max(gains, key=lambda epoch: gains[epoch])
        sentences.append(
            f"{images or 1200} images: the best teacher is that of epoch {best}, "
            f"{100 * gains[best]:+.1f} points against ce."
        )
    return [
        f"\nTest accuracy in % on 597 digits, mean ± standard deviation of {seeds} seeds "
        "(gain: paired by seed):\n",
        *table(header, rows),
        "",
        *sentences,
    ]
