"""List the benchmarks: what is compared with what, and the target.  One entry is one table line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.bench.harness import Benchmark, Reach
from tests.bench.workplace import CLASSES

_ROWS = f"gather 256 x {CLASSES}, shuffled"
_LOAD = "4 connections, one worker"
_BY = {"path": "store by path", "url": "store by URL, streamed"}
DENSE_FP16 = 2 * CLASSES
SMALLEST = Reach("<=", 720 / DENSE_FP16)

_GATHERS = {
    "lmdb": ("LMDB, one record per sample", Reach(">=", 4)),
    "hdf5": ("HDF5, chunks of 512 rows, gzip", None),
    "pickles": ("a folder of pickles, one per sample", None),
    "parquet": ("Parquet, a row group per shard, take", None),
    "zarr-same": ("zarr-python on the same store, oindex", None),
    "zarr-default": ("zarr-python, its default settings, oindex", None),
}


def benchmarks(data: Path | None) -> list[Benchmark]:
    """Return all benchmarks in the table's order; ``data`` is a folder of real data or None."""
    return [*_reading(), *_serving(), *_training(), *_building(), *_bytes(data), *_memory()]


def _reading() -> list[Benchmark]:
    memmaps = (
        Benchmark(
            name="gather-codes",
            what=f"{_ROWS}, codes",
            against="NumPy memmap, codes",
            unit="rows/s",
            reach=Reach(">=", 0.90),
            sides="gather.codes",
        ),
        Benchmark(
            name="gather-rows",
            what=_ROWS,
            against="NumPy memmaps, codes and scalars",
            unit="rows/s",
            reach=Reach(">=", 0.75),
            sides="gather.against",
            arguments=("memmap",),
        ),
    )
    others = [
        Benchmark(
            name=f"gather-{peer}",
            what=_ROWS,
            against=against,
            unit="rows/s",
            reach=reach,
            sides="gather.against",
            arguments=(peer,),
        )
        for peer, (against, reach) in _GATHERS.items()
    ]
    materialise = Benchmark(
        name="materialise",
        what="materialise the store, verified, fsynced",
        against="a copy of the decoded bytes, fsynced",
        unit="s",
        reach=Reach("<=", 6),
        sides="materialise.whole",
    )
    return [*memmaps, *others, materialise]


def _serving() -> list[Benchmark]:
    return [
        Benchmark(
            name="serve-objects",
            what=f"download of a shard, {_LOAD}",
            against="nginx, same file",
            unit="requests/s",
            reach=Reach(">=", 0.95),
            today=0.80,
            sides="serving.objects",
        ),
        Benchmark(
            name="serve-rows",
            what=f"rows of 256 x {CLASSES}, {_LOAD}",
            against="nginx, an equal answer as a file",
            unit="requests/s",
            reach=Reach(">=", 0.55),
            today=0.20,
            sides="serving.rows",
        ),
        Benchmark(
            name="serve-fast-rows",
            what=f"rows of 256 x {CLASSES} by FastRows",
            against="the same through ASGI",
            unit="cpu us/answer",
            reach=Reach("<=", 0.67),
            sides="serving.fast_rows",
        ),
        Benchmark(
            name="serve-memory",
            what="memory of serve: peak under load - idle",
            against="256 MiB",
            unit="MiB",
            reach=Reach("<=", 1),
            sides="serving.memory_under_load",
        ),
    ]


def _training() -> list[Benchmark]:
    steps = [
        Benchmark(
            name=f"step-{name}-{side}",
            what=f"a kd step, {by}",
            against=against,
            unit="s/step",
            reach=reach,
            sides="steps.distillation",
            arguments=(name, side),
        )
        for name, by in _BY.items()
        for side, against, reach in (
            ("memory", "the same, logits in memory", Reach("<=", 1.02)),
            ("ce", "a cross-entropy step", Reach("<=", 1.10)),
        )
    ]
    proof = Benchmark(
        name="step-proof",
        what=f"a kd step, {_BY['url']}",
        against="the same, rows not proven",
        unit="s/step",
        reach=Reach("<=", 1.05),
        sides="steps.distillation",
        arguments=("url", "unproven"),
    )
    own_steps = [
        Benchmark(
            name=f"own-step-{name}",
            what=f"an own step with_logits, {by}",
            against="the same, logits in memory",
            unit="s/step",
            reach=Reach("<=", 1.03),
            sides="own_loop.own_step",
            arguments=(name,),
        )
        for name, by in _BY.items()
    ]
    replays = [
        Benchmark(
            name=f"replay-{preset}",
            what=f"a view of {preset}",
            against="the image as it is, decoded",
            unit="s/sample",
            reach=None,
            sides="own_loop.replay",
            arguments=(preset,),
        )
        for preset in ("cifar-train", "cifar-strong", "imagenet-train")
    ]
    return [*steps, proof, *own_steps, *replays]


def _building() -> list[Benchmark]:
    return [
        Benchmark(
            name=f"build-{name}",
            what=f"a build, resnet20, {images}",
            against="the bare forward, same loader",
            unit="s",
            reach=Reach("<=", 1.05),
            sides=f"builds.{name}",
        )
        for name, images in (
            ("noise", f"noise 32 x 32, {CLASSES} classes"),
            ("cifar", "CIFAR or alike, 10 classes"),
        )
    ]


def _bytes(data: Path | None) -> list[Benchmark]:
    """Return the curves; real logits of 1000 classes have the synthetic ones' target."""
    synthetic = Benchmark(
        name="bytes-synthetic",
        what="bytes per row at KL(T=4) <= 1e-4, synthetic",
        against=f"dense fp16, {DENSE_FP16} B",
        unit="B/row",
        reach=SMALLEST,
        sides="sizes.synthetic_curve",
    )
    files = sorted(data.glob("*.npy")) if data is not None and data.is_dir() else []
    real = [_real_bytes(file.stem, np.load(file, mmap_mode="r").shape[-1], file) for file in files]
    return [synthetic, *(real or [_real_bytes("real", CLASSES, None)])]


def _real_bytes(name: str, classes: int, file: Path | None) -> Benchmark:
    return Benchmark(
        name=f"bytes-{name}",
        what=f"bytes per row at KL(T=4) <= 1e-4, {name}",
        against=f"dense fp16, {2 * classes} B",
        unit="B/row",
        reach=SMALLEST if classes == CLASSES else None,
        sides="sizes.real_curve",
        arguments=(file,),
    )


def _memory() -> list[Benchmark]:
    return [
        Benchmark(
            name=f"memory-{command}",
            what=f"memory of {command}, 10 N samples",
            against="the same, N samples",
            unit="MiB",
            reach=Reach("<=", 1.10),
            sides=f"growth.{command}",
        )
        for command in ("build", "train")
    ]
