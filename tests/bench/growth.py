"""Compare the peak memory of whole commands on N samples and on 10 N; a leak of rows would show.

The figure is the peak of RssAnon, which leaves out the cache's mapped files.  The images are in
memory and therefore small; the logits of 10 N samples would be hundreds of MiB.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from logitstore.precompute.building.run import build as build_store
from tests.bench.harness import Side, Sides
from tests.bench.images import Task, make_task
from tests.bench.processes import MIB, Watch, with_cache
from tests.bench.workplace import CLASSES, Workplace

GROWTH = 10
_NETWORK, _SIDE = "mlp?hidden=64", 4


@contextmanager
def build(place: Workplace) -> Iterator[Sides]:
    """Measure ``logitstore build`` with a small network."""
    shard = place.sizes.growth[1]

    def side(task: Task) -> Side:
        def run() -> float:
            out = place.new_folder("growth") / "s.zarr"
            command = ["build", "--teacher", str(task.checkpoint), "--arch", task.arch]
            command += ["--data", task.data, "--out", str(out), "--shard-rows", str(shard)]
            return _peak(place, [*command, "--device", "cpu"])

        return run

    yield _sides(place, side)


@contextmanager
def train(place: Workplace) -> Iterator[Sides]:
    """Measure one epoch of ``logitstore train``, with a decoded copy in a cache of its own."""
    shard = place.sizes.growth[1]

    def side(task: Task) -> Side:
        out = place.new_folder("growth") / "s.zarr"
        build_store(task.config(out, shard))

        def run() -> float:
            folder = place.new_folder("growth")
            command = ["train", "--data", task.data, "--student", _NETWORK, "--store", str(out)]
            command += ["--method", "kd", "--epochs", "1", "--out", str(folder / "run")]
            command += ["--read", "materialise"]
            return _peak(place, [*command, "--device", "cpu"])

        return run

    yield _sides(place, side)


def _sides(place: Workplace, side: Callable[[Task], Side]) -> Sides:
    """Compare the side of 10 N samples with that of N."""
    rows = place.sizes.growth[0]
    small, large = (
        side(make_task(place, count, CLASSES, arch=_NETWORK, side=_SIDE))
        for count in (rows, GROWTH * rows)
    )
    return Sides(
        ours=large,
        theirs=small,
        repeats=place.sizes.few_repeats,
        facts={
            "N": rows,
            "logits of 10 N MiB": GROWTH * rows * CLASSES * 4 / MIB,
            "measured": "RssAnon",
        },
        warm=False,
    )


def _peak(place: Workplace, arguments: Sequence[str]) -> float:
    """Run a command and return its peak anonymous memory in MiB; RuntimeError if it fails."""
    folder = place.new_folder("command")
    log = folder / "log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "logitstore", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=with_cache(folder))
        with Watch(process.pid) as watch:
            code = process.wait()
    if code:
        raise RuntimeError(
            f"logitstore {arguments[0]} ended with {code}:\n{log.read_text()[-2000:]}"
        )
    return watch.anonymous
