"""``make bench``: what reading, building and a distillation step cost, against doing without.

Synthetic data, made here; the table goes to stdout and, as JSON, to ``bench-results/bench.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from logitstore.console import table
from logitstore.encodings import FLOAT16, Rows
from logitstore.errors import LogitstoreError
from logitstore.opening import chosen_snapshot, open_store
from logitstore.precompute.build import build
from logitstore.precompute.datasets import open_dataset
from logitstore.precompute.feed import cut, feed
from logitstore.precompute.inference import forward
from logitstore.precompute.models import build_model
from logitstore.precompute.prepare import BuildConfig
from logitstore.precompute.views import Views
from logitstore.stores import LogitStore
from logitstore.writer import Shard
from tests.bench.harness import Ratio, compare
from tests.bench.own_loop import own_steps, replays
from trainer.binding import bind
from trainer.config import TrainConfig
from trainer.data import Batch, Plan, Source, batches
from trainer.step import make_learner, take_step

SAMPLES, CLASSES, SIDE = 4096, 1000, 32
STUDENT, TEACHER = "cnn5", "resnet20"
BATCH, STEPS = 128, 2


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        data, checkpoint = _make(top)
        ratios = [_build(top, data, checkpoint)]
        store = open_store(top / "s.zarr")
        ratios += _gather(top, store)
        with _served(top / "s.zarr") as url:
            served = open_store(url)
            ratios += _steps(data, store, served)
            named = {"path": store, "URL": served}
            teachers = {name: chosen_snapshot(opened, None) for name, opened in named.items()}
            ratios += own_steps(data, STUDENT, teachers)
    _report(ratios + replays())


def _make(top: Path) -> tuple[str, Path]:
    """A dataset of noise and a teacher with random weights: only time is measured."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(top / "d.npz", x=images, y=rng.integers(0, CLASSES, SAMPLES))
    torch.manual_seed(0)
    model = build_model(TEACHER, classes=CLASSES, shape=(3, SIDE, SIDE))
    torch.save(model.state_dict(), top / "teacher.pth")
    return f"npz:{top}/d.npz?classes={CLASSES}", top / "teacher.pth"


def _build(top: Path, data: str, checkpoint: Path) -> Ratio:
    """A build, without its checks' constant cost, against the forward over the same loader."""
    from logitstore.precompute.build import write
    from logitstore.precompute.prepare import prepare

    def config(name: str) -> BuildConfig:
        return BuildConfig(
            teachers=[str(checkpoint)], arch=[TEACHER], data=data, out=str(top / name), device="cpu"
        )

    dataset, turn = open_dataset(data), iter(range(1000))
    model = build_model(TEACHER, classes=CLASSES, shape=(3, SIDE, SIDE))
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    model.eval().to(memory_format=torch.channels_last)
    spans = cut([Shard(0, 0, SAMPLES)], 256)

    def bare() -> None:
        for images in feed(dataset, Views(()), spans, workers=0):
            forward(model, images, None, "fp32")

    prepared = [prepare(config(f"b{number}.zarr")) for number in range(8)]
    ratio = compare(
        f"build {SAMPLES} x {CLASSES}, {TEACHER}",
        "the bare forward, same loader",
        "<= 1.05",
        lambda: write(prepared[next(turn)]),
        bare,
    )
    build(config("s.zarr"))
    return ratio


def _gather(top: Path, store: LogitStore) -> list[Ratio]:
    """Shuffled batches of rows, after the first touch, against a NumPy memmap of the codes."""
    (snapshot,) = store.snapshots.values()
    rows = snapshot.rows(np.arange(SAMPLES))
    for name, array in rows.arrays.items():
        np.save(top / f"{name}.npy", array)
    codes, scalars = (np.load(top / f"{name}.npy", mmap_mode="r") for name in ("codes", "scalars"))
    orders = np.random.default_rng(1).permutation(SAMPLES)[: 15 * 256].reshape(15, 256)

    def ours() -> None:
        for indices in orders:
            snapshot.rows(indices)

    def memmap() -> None:
        for indices in orders:
            _ = codes[indices], scalars[indices]

    what = f"rows of 256 x {CLASSES}, shuffled (rate)"
    return [compare(what, "NumPy memmap, codes and scalars", ">= 0.75", ours, memmap, inverse=True)]


def _steps(data: str, local: LogitStore, served: LogitStore) -> list[Ratio]:
    """Steps of kd from a path and from a URL, against logits in memory and plain cross-entropy."""
    dataset = open_dataset(data)
    bound = {
        name: bind(store, next(iter(store.snapshots.values())), dataset)[0]
        for name, store in (("path", local), ("URL", served))
    }
    logits = next(iter(local.snapshots.values())).logits(np.arange(SAMPLES))
    encoded = FLOAT16.encode(logits)
    plan = Plan(samples=np.arange(SAMPLES), seed=0, batch_size=BATCH, view_count=1, epochs=10**6)

    def in_memory(source: Source) -> Iterator[Batch]:
        for batch in batches(replace(source, snapshot=None), plan):
            chosen = {name: array[batch.request.indices] for name, array in encoded.items()}
            yield batch._replace(teacher=Rows(FLOAT16, chosen))

    def steps(method: str, stream: Iterator[Batch]) -> Callable[[], object]:
        config = TrainConfig(
            data=data,
            student=STUDENT,
            out="unused",
            store="s" if method == "kd" else None,
            method=method,
            device="cpu",
        ).resolved()
        torch.manual_seed(0)
        model = build_model(STUDENT, classes=CLASSES, shape=(3, SIDE, SIDE))
        learner, chosen = make_learner(config, model, torch.device("cpu")), config.make_method()

        def run() -> None:
            for batch in islice(stream, STEPS):
                take_step(learner, chosen, batch, lr=0.01, normalize=None, precision="fp32")

        return run

    plain = steps("ce", iter(batches(replace(bound["path"], snapshot=None), plan)))
    memory = steps("kd", in_memory(bound["path"]))
    found = []
    for name, source in bound.items():
        ours = steps("kd", iter(batches(source, plan)))
        what = f"a kd step, store by {name}"
        for against, other, reach in (
            ("the same, logits in memory", memory, "<= 1.02"),
            ("a cross-entropy step", plain, "<= 1.10"),
        ):
            found.append(compare(what, against, reach, ours, other, repeats=15))
    return found


@contextmanager
def _served(store: Path) -> Iterator[str]:
    """The real server on a free loopback port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "logitstore", "serve", str(store), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}/s"
        try:
            for _ in range(10):
                try:
                    open_store(url)
                    break
                except LogitstoreError:
                    time.sleep(0.5)
            yield url
        finally:
            server.terminate()


def _report(ratios: list[Ratio]) -> None:
    rows = [
        (
            entry.what,
            entry.against,
            f"{entry.ratio:.3f}",
            f"{entry.low:.3f}-{entry.high:.3f}",
            entry.reach,
            f"{1000 * entry.seconds:.1f}",
        )
        for entry in ratios
    ]
    print("\n".join(table(("what", "against", "ratio", "range", "reach", "ms"), rows)))
    out = Path("bench-results")
    out.mkdir(exist_ok=True)
    document = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "ratios": []}
    document["ratios"] = [asdict(entry) for entry in ratios]
    (out / "bench.json").write_text(json.dumps(document, indent=2) + "\n")


main()
