"""``logitstore demo``: the whole way on scikit-learn's digits, by the commands that a user types.

A teacher is trained and three of its epochs are kept, one store of the three is built and served on
loopback, and small students learn over HTTP from 100 images: with cross-entropy alone, and with the
logits of each teacher.  This file only composes commands and averages what their runs report.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from logitstore.cli.app import app
from logitstore.errors import InputError, Unreachable
from logitstore.text import size, table

commands = typer.Typer()


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
    from logitstore.cli.demo import run_demo

    run_demo(lambda arguments: app(arguments, standalone_mode=False), out, seeds=seeds)


Run = Callable[[list[str]], Any]


TEACHER_EPOCHS = (1, 5, 60)


FEW, FIRST_SEED = 100, 1000


DATA, TEST = "digits?train=true", "digits?train=false"


_STARTS_WITHIN_SECONDS = 60


def run_demo(run: Run, out: Path, *, seeds: int) -> None:
    """Run the demo's commands with ``run`` (arguments -> None) in the folder ``out``.

    ``seeds`` students for each line of the table.  What is finished in ``out`` is not done again.
    Raises what the commands raise.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    # Networks of 3,000 weights gain nothing from threads, and spinning ones lose a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    say = _Narrator(run)
    store, teacher = out / "digits.zarr", out / "teacher"
    say("A teacher (MLP 2x256) on 1,200 digits; epochs 1, 5 and 60 are kept.")
    say.does(
        [
            *("train", "--data", DATA, "--student", "mlp?hidden=256,256", "--method", "ce"),
            *("--epochs", str(TEACHER_EPOCHS[-1])),
            *("--snapshots", ",".join(map(str, TEACHER_EPOCHS)), "--val", TEST),
            *("--out", str(teacher)),
        ]
    )
    say("One store of the three teachers' logits; the images are read once.")
    say.does(["build", "--teacher", str(teacher), "--data", DATA, "--out", str(store)])
    say.does(["verify", str(store)])
    say("The store is served on loopback; students see neither teacher nor checkpoint.")
    with _served(store) as url:
        _students(say, out, url, seeds)
    say(*_results(out, seeds))
    say(
        f"\nTook {time.monotonic() - begun:.0f} s. Try next:",
        f"  logitstore inspect {store}",
        f"  logitstore verify {store} --teacher {teacher}/snapshots/epoch-0005.safetensors "
        f"--data '{DATA}' --snapshot epoch-0005",
        f"  logitstore serve {out}",
        f"  logitstore train --data '{DATA}' --student 'mlp?hidden=64' --store {store} "
        f"--snapshot epoch-0005 --method kd --temperature 8 --val '{TEST}' --out {out}/mine",
        f"  tensorboard --logdir {out}",
    )


def _group(images: int | None) -> list[tuple[str, int | None]]:
    """(method, teacher's epoch) of the students that learn from so many images, None for all."""
    epochs = TEACHER_EPOCHS if images else TEACHER_EPOCHS[-1:]
    return [("ce", None), *(("kd", epoch) for epoch in epochs)]


def _folder(out: Path, method: str, seed: int, epoch: int | None, images: int | None) -> Path:
    taught = f"-epoch{epoch}" if epoch else ""
    return out / "students" / f"{method}{taught}-{images or 'all'}-seed{seed}"


def _students(say: _Narrator, out: Path, url: str, seeds: int) -> None:
    """Train them all; the first seed's commands are shown, the others differ in the seed only."""
    for number in range(seeds):
        seed, shown = FIRST_SEED + number, number == 0
        for images in (FEW, None):
            for method, epoch in _group(images):
                command = _student(url, method, seed, epoch, images)
                folder = _folder(out, method, seed, epoch, images)
                say.does([*command, "--out", str(folder)], quiet=True, shown=shown)
        said = f"seeds {FIRST_SEED} to {seed} done" if number else f"seed {seed} done"
        say(f"  {said} ({number + 1} of {seeds})")


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
    from logitstore.trainer.studies.seeds import OverSeeds, paired

    snapshots = _json(
        [sys.executable, "-m", "logitstore", "inspect", str(out / "digits.zarr"), "--json"]
    )
    stored = {entry["name"]: entry for entry in snapshots["snapshots"]}
    history = [
        json.loads(line) for line in (out / "teacher/metrics.jsonl").read_text().splitlines()
    ]
    header = ("student", "images", "test accuracy", "gain over ce", "teacher's", "bytes", "seconds")
    rows: list[Sequence[str]] = []
    findings: list[str] = []
    for images in (FEW, None):
        plain = _figures(out, "ce", None, images, seeds, "val_accuracy")
        gained: dict[int, float] = {}
        for method, epoch in _group(images):
            reached = _figures(out, method, epoch, images, seeds, "val_accuracy")
            accuracy = OverSeeds(reached).cell(1, percent=True)
            row = [method, str(images or 1200), accuracy, "", "", ""]
            if epoch:
                gain = paired(reached, plain)
                gained[epoch] = gain.mean
                teacher = f"{100 * history[epoch - 1]['val_accuracy']:.1f}"
                bytes_ = size(stored[f"epoch-{epoch:04d}"]["bytes"])
                row = [
                    f"kd from epoch {epoch}",
                    *row[1:3],
                    gain.cell(1, percent=True),
                    teacher,
                    bytes_,
                ]
            seconds = OverSeeds(_figures(out, method, epoch, images, seeds, "seconds"))
            rows.append([*row, f"{seconds.mean:.1f}"])
        best = max(gained, key=lambda epoch: gained[epoch])
        findings.append(
            f"{images or 1200} images: the best teacher is that of epoch {best}, "
            f"{100 * gained[best]:+.1f} points against ce."
        )
    return [
        f"\nTest accuracy in % on 597 digits, mean ± standard deviation of {seeds} seeds "
        "(gain: paired by seed):\n",
        *table(header, rows),
        "",
        *findings,
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


class _Narrator:
    """Says what happens and runs the commands, each shown as a user would type it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)

    def does(self, arguments: list[str], *, quiet: bool = False, shown: bool = True) -> None:
        if shown:
            self(f"$ logitstore {shlex.join(arguments)}")
        if not quiet:
            self._finished(arguments)
            self("")
            return
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            self._finished(arguments)

    def _finished(self, arguments: list[str]) -> None:
        code = self._run(arguments)
        if code:
            raise InputError(
                f"the demo stops: `logitstore {shlex.join(arguments)}` ended with {code}"
            )


@contextmanager
def _served(store: Path) -> Iterator[str]:
    """``logitstore serve`` on a free loopback port until the block ends; yields the store's URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["serve", str(store), "--port", str(port)]
    print(f"$ logitstore {shlex.join(command)} &", flush=True)
    with subprocess.Popen(
        [sys.executable, "-m", "logitstore", *command], stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait(server, port)
            yield f"http://127.0.0.1:{port}/{store.stem}"
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise Unreachable(f"the demo's server did not start on port {port}")


def _json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
