"""Make images of noise, a teacher with random weights and its store.  Only their time counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.networks.factory import build_model
from tests.bench.workplace import CLASSES, Workplace

SIDE = 32
TEACHER, STUDENT = "resnet20", "cnn5"


@dataclass(frozen=True)
class Task:
    """The input of a build: a dataset's spec, and a teacher's checkpoint and architecture."""

    data: str
    checkpoint: Path
    arch: str

    def config(self, out: Path, shard_rows: int | None = None) -> BuildConfig:
        """Return the configuration that builds ``out``, without workers: images are in memory."""
        return BuildConfig(
            teachers=[str(self.checkpoint)],
            arch=[self.arch],
            data=self.data,
            out=str(out),
            device="cpu",
            shard_rows=shard_rows,
        )


def make_task(
    place: Workplace, samples: int, classes: int, *, arch: str = TEACHER, side: int = SIDE
) -> Task:
    """Write images of noise, uint8 (samples, side, side, 3), and a teacher."""
    folder = place.new_folder("task")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, side, side, 3), dtype=np.uint8)
    np.savez(folder / "d.npz", x=images, y=rng.integers(0, classes, samples))
    return Task(
        data=f"npz:{folder}/d.npz?classes={classes}",
        checkpoint=_teacher(folder, classes, arch, side),
        arch=arch,
    )


def make_noise(place: Workplace) -> Task:
    """Make the images on which steps and builds are measured."""
    return make_task(place, place.sizes.images, CLASSES)


def make_cifar(place: Workplace) -> Task:
    """Return real images in ten classes if LOGITSTORE_BENCH_DATA has an .npz file, else noise.

    The file has images under ``x`` or ``x_train``, labels under ``y`` or ``y_train``.
    """
    files = sorted(place.data.glob("*.npz")) if place.data is not None else []
    for file in files:
        with np.load(file) as archive:
            for x, y in (("x", "y"), ("x_train", "y_train")):
                if {x, y} <= set(archive.files):
                    most = min(len(archive[y]), place.sizes.images)
                    spec = f"npz:{file}?x={x}&y={y}&classes=10&samples=0:{most}"
                    folder = place.new_folder("task")
                    return Task(spec, _teacher(folder, 10, TEACHER, SIDE), TEACHER)
    return make_task(place, place.sizes.images, 10)


def make_built(place: Workplace) -> Path:
    """Build the store of the noise images' logits."""
    out = place.new_folder("built") / "noise.zarr"
    build(place.once(make_noise).config(out))
    return out


def _teacher(folder: Path, classes: int, arch: str, side: int) -> Path:
    torch.manual_seed(0)
    model = build_model(arch, classes=classes, shape=(3, side, side))
    torch.save(model.state_dict(), folder / "teacher.pth")
    return folder / "teacher.pth"
