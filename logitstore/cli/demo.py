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
from typing import Annotated, Any

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
    show = _Show(run)
    store, teacher = out / "digits.zarr", out / "teacher"
    show.say("A teacher (MLP 2x256) on 1,200 digits; epochs 1, 5 and 60 are kept.")
    show.run(
        [
            *("train", "--data", DATA, "--student", "mlp?hidden=256,256", "--method", "ce"),
            *("--epochs", str(TEACHER_EPOCHS[-1])),
            *("--snapshots", ",".join(map(str, TEACHER_EPOCHS)), "--val", TEST),
            *("--out", str(teacher)),
        ]
    )
    show.say("One store of the three teachers' logits; the images are read once.")
    show.run(["build", "--teacher", str(teacher), "--data", DATA, "--out", str(store)])
    show.run(["verify", str(store)])
    show.say("The store is served on loopback; students see neither teacher nor checkpoint.")
    with _served(store, show) as url:
        _train_students(show, out, url, seeds)
    show.say(*_results(out, seeds))
    show.say(
        f"\nTook {time.monotonic() - start:.0f} s. Try next:",
        f"  logitstore inspect {store}",
        f"  logitstore verify {store} --teacher {teacher}/snapshots/epoch-0005.safetensors "
        f"--data '{DATA}' --snapshot epoch-0005",
        f"  logitstore serve {out}",
        f"  logitstore train --data '{DATA}' --student 'mlp?hidden=64' --store {store} "
        f"--snapshot epoch-0005 --method kd --temperature 8 --val '{TEST}' --out {out}/mine",
        f"  tensorboard --logdir {out}",
    )


class _Show:
    """Tells what happens and runs the commands, each shown as a user would type it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def say(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)

    def say_command(self, arguments: Sequence[str], end: str = "") -> None:
        self.say(f"$ logitstore {shlex.join(arguments)}{end}")

    def run(self, arguments: list[str]) -> None:
        """Run a command whose output is part of the demo."""
        self.say_command(arguments)
        self._finish(arguments)
        self.say("")

    def run_quietly(self, arguments: list[str]) -> None:
        """Run a command without its output."""
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            self._finish(arguments)

    def _finish(self, arguments: list[str]) -> None:
        code = self._run(arguments)
        if code:
            raise InputError(
                f"the demo stops: `logitstore {shlex.join(arguments)}` ended with {code}"
            )


@contextmanager
def _served(store: Path, show: _Show) -> Iterator[str]:
    """Serve a store with ``logitstore serve`` until the block ends; yields the store's URL."""
    from logitstore.cli.background_server import BackgroundServer, free_port

    port = free_port()
    command = ["serve", str(store), "--port", str(port)]
    show.say_command(command, end=" &")
    own_program = [sys.executable, "-m", "logitstore", *command]
    with BackgroundServer(own_program, f"http://127.0.0.1:{port}") as server:
        yield f"{server.url}/{store.stem}"


def _groups(images: int | None) -> list[tuple[str, int | None]]:
    """Return (method, teacher's epoch) of the students of so many images; None are all."""
    epochs = TEACHER_EPOCHS if images else TEACHER_EPOCHS[-1:]
    return [("ce", None), *(("kd", epoch) for epoch in epochs)]


def _folder(out: Path, method: str, seed: int, epoch: int | None, images: int | None) -> Path:
    teacher = f"-epoch{epoch}" if epoch else ""
    return out / "students" / f"{method}{teacher}-{images or 'all'}-seed{seed}"


def _train_students(show: _Show, out: Path, url: str, seeds: int) -> None:
    """Train them all; the first seed's commands are shown, the others differ in the seed only."""
    for number in range(seeds):
        seed = FIRST_SEED + number
        for images in (FEW, None):
            for method, epoch in _groups(images):
                folder = _folder(out, method, seed, epoch, images)
                command = [*_student(url, method, seed, epoch, images), "--out", str(folder)]
                if number == 0:
                    show.say_command(command)
                show.run_quietly(command)
        done = f"seeds {FIRST_SEED} to {seed} done" if number else f"seed {seed} done"
        show.say(f"  {done} ({number + 1} of {seeds})")


def _student(url: str, method: str, seed: int, epoch: int | None, images: int | None) -> list[str]:
    command = ["train", "--data", DATA, "--student", "mlp?hidden=32", "--method", method]
    if epoch:
        command += ["--store", url, "--snapshot", f"epoch-{epoch:04d}", "--temperature", "4"]
    if images:
        command += ["--limit", str(images), "--limit-seed", str(seed)]
    command += ["--epochs", "100" if images else "30", "--batch-size", "32"]
    return [*command, "--seed", str(seed), "--val", TEST]


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
        plain = _figures(out, "ce", None, images, seeds, "val_accuracy")
        gains: dict[int, float] = {}
        for method, epoch in _groups(images):
            reached = _figures(out, method, epoch, images, seeds, "val_accuracy")
            accuracy = OverSeeds(reached).cell(1, percent=True)
            row = [method, str(images or 1200), accuracy, "", "", ""]
            if epoch:
                gain = paired(reached, plain)
                gains[epoch] = gain.mean
                teacher = f"{100 * history[epoch - 1]['val_accuracy']:.1f}"
                stored = size(snapshots[f"epoch-{epoch:04d}"].stored_bytes())
                row = [f"kd from epoch {epoch}", *row[1:3], gain.cell(1, percent=True)]
                row += [teacher, stored]
            seconds = OverSeeds(_figures(out, method, epoch, images, seeds, "seconds"))
            rows.append([*row, f"{seconds.mean:.1f}"])
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


def _figures(
    out: Path, method: str, epoch: int | None, images: int | None, seeds: int, name: str
) -> tuple[float, ...]:
    """Return one figure of each seed's run."""
    values = []
    for number in range(seeds):
        folder = _folder(out, method, FIRST_SEED + number, epoch, images)
        result = json.loads((folder / "result.json").read_text())
        values.append(float({**result, **result["metrics"]}[name]))
    return tuple(values)
