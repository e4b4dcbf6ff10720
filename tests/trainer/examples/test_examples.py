"""The example loops run as they stand, and what they learn comes from the store.

The training images have no labels at all: whatever the students know, the teacher's rows told them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import logitstore.trainer as trainer

pytestmark = pytest.mark.slow  # importing Lightning, transformers and timm takes a minute or two
NAMES = sorted(path.stem for path in (Path(trainer.__file__).parent / "examples").glob("[!_]*.py"))
CLASSES, SAMPLES = 4, 256
RUN_ALL = """
import runpy, sys, traceback
names, arguments = sys.argv[1].split(), sys.argv[2:]
for name in names:
    print("=== example", flush=True)
    sys.argv = [name, *arguments, *(["test_resnet"] if name == "timm_script" else [])]
    try:
        runpy.run_module(f"logitstore.trainer.examples.{name}", run_name="__main__")
    except BaseException:
        traceback.print_exc(file=sys.stdout)
"""


def coloured(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise images, in each of which one channel, or none, is brighter: uint8 (N, 16, 16, 3)."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 160, (SAMPLES, 16, 16, 3)), np.arange(SAMPLES) % CLASSES
    for channel in range(3):
        images[labels == channel, :, :, channel] += 60
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def printed(
    tmp_path_factory: pytest.TempPathFactory, bound_store: Callable[..., Path]
) -> dict[str, str]:
    """What each example prints, over a store with two random views; all in one process."""
    top = tmp_path_factory.mktemp("examples")
    views, (images, labels), (others, known) = top / "views.json", coloured(0), coloured(1)
    crop = {"name": "RandomCrop", "size": 16, "padding": 2}
    views.write_text(json.dumps([crop, {"name": "RandomHorizontalFlip"}]))
    np.savez(top / "train.npz", x=images, y=np.full(SAMPLES, -1))
    np.savez(top / "val.npz", x=others, y=known)
    logits = np.random.default_rng(2).standard_normal((2, SAMPLES, CLASSES)).astype(np.float32)
    logits[:, np.arange(SAMPLES), labels] += 12
    data = f"npz:{top}/train.npz?classes={CLASSES}"
    store = bound_store(top / "s.zarr", data, logits, view_spec=str(views))
    arguments = [str(store), "teacher", data, f"npz:{top}/val.npz"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, " ".join(NAMES), *arguments],
        cwd=top,
        capture_output=True,
        text=True,
        timeout=240,
    )
    print(done.stderr)
    parts = done.stdout.split("=== example\n")[1:]
    return dict(zip(NAMES, parts, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_learns_from_the_teacher_alone(name: str, printed: dict[str, str]) -> None:
    loss, accuracy = (
        [float(value) for value in re.findall(rf"\b{what}\b\W+([0-9.]+)", printed[name])]
        for what in ("loss", "accuracy")
    )
    assert len(loss) >= 10, printed[name]
    assert loss[-1] < loss[0] / 2
    assert accuracy[-1] > 0.9


def test_an_example_is_short() -> None:
    folder = Path(trainer.__file__).parent / "examples"
    assert all(len((folder / f"{name}.py").read_text().splitlines()) < 60 for name in NAMES)
