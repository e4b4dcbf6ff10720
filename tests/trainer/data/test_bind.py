"""A student is refused the logits of any other dataset than the one it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitstore.derive.transcode import transcode
from logitstore.errors import InputError, MismatchError
from logitstore.format.choice import EncodingRequest
from logitstore.precompute.data.sources import open_dataset
from logitstore.reading.opening import open_store
from logitstore.trainer import TrainConfig, train


@pytest.fixture
def images(tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    dataset = open_dataset("digits?train=true&samples=0:60")
    pixels = np.stack([np.asarray(dataset.image(i)) for i in range(60)])
    return pixels, dataset.labels.astype(np.int64)


@pytest.fixture
def taught(
    images: tuple[np.ndarray, np.ndarray], bound_store: Callable[..., Path], tmp_path: Path
) -> TrainConfig:
    """A run over 60 digits that a store belongs to."""
    np.savez(tmp_path / "own.npz", x=images[0], y=images[1])
    data = f"npz:{tmp_path}/own.npz?classes=10"
    logits = np.random.default_rng(0).standard_normal((1, 60, 10)).astype(np.float32)
    return TrainConfig(
        data=data,
        student="mlp?hidden=8",
        store=str(bound_store(tmp_path / "s.zarr", data, logits)),
        method="kd",
        epochs=1,
        out=str(tmp_path / "run"),
        device="cpu",
    )


def refused(config: TrainConfig, says: str) -> None:
    with pytest.raises(MismatchError, match=says):
        train(config)
    assert not Path(config.out).exists()


def other(
    config: TrainConfig, pixels: np.ndarray, labels: np.ndarray, classes: int = 10
) -> TrainConfig:
    path = Path(config.out).parent / "other.npz"
    np.savez(path, x=pixels, y=labels)
    return replace(config, data=f"npz:{path}?classes={classes}")


def test_the_store_s_own_dataset_is_accepted(taught: TrainConfig) -> None:
    assert train(taught).epochs == 1


def test_other_samples_are_refused(
    taught: TrainConfig, images: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, labels = images
    refused(other(taught, pixels[:50], labels[:50]), "60 samples there, 50 here.*--limit")
    order = np.random.default_rng(1).permutation(60)
    refused(other(taught, pixels[order], labels[order]), "the same samples in another order")
    changed = labels.copy()
    changed[7] = (changed[7] + 1) % 10
    refused(
        other(taught, pixels, changed),
        rf"sample 7 has label {labels[7]} there and {changed[7]} here: .*--class-map FILE",
    )


def test_the_same_labels_with_other_images_are_refused(
    taught: TrainConfig, images: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, labels = images
    refused(other(taught, 255 - pixels, labels), "is not the image that the teacher saw")
    bigger = np.repeat(np.repeat(pixels, 2, 1), 2, 2)
    refused(other(taught, bigger, labels), r"is \(1, 16, 16\) here and was \(1, 8, 8\)")


def test_another_number_of_classes_is_refused(
    taught: TrainConfig, images: tuple[np.ndarray, np.ndarray]
) -> None:
    refused(other(taught, *images, classes=11), "has 10 classes, the dataset .* has 11")


def test_only_the_expected_root_is_accepted(taught: TrainConfig) -> None:
    assert taught.store is not None
    root = open_store(taught.store).snapshots["teacher"].root
    refused(replace(taught, expect_root="0" * 64), f"has root {root}, expected 0000")
    assert train(replace(taught, expect_root=f"sha256:{root}")).epochs == 1


def test_imported_logits_are_trained_on_only_when_told(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=pixels, y=np.arange(100) % 10)
    config = TrainConfig(
        data=f"npz:{tmp_path}/data.npz?classes=10",
        student="mlp?hidden=8",
        store=str(tiny_store(tmp_path / "imported.zarr")),
        method="kd",
        epochs=1,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    refused(config, "was imported: nothing in it tells whether .* pass --allow-unbound")
    assert train(replace(config, allow_unbound=True)).epochs == 1


def test_rows_without_their_tail_teach_at_temperature_1_only(
    taught: TrainConfig, tmp_path: Path
) -> None:
    store = open_store(str(taught.store))
    small = str(tmp_path / "top.zarr")
    transcode(store, store.snapshots["teacher"], small, EncodingRequest(text="topk:3"))
    with pytest.raises(InputError, match=r"keeps 3 of 10 classes: its loss at temperature 4 is"):
        train(replace(taught, store=small))
    with pytest.raises(InputError, match=r"its loss at temperature 2 was not measured"):
        train(replace(taught, store=small, temperature=2))
    assert not Path(taught.out).exists()
    assert train(replace(taught, store=small, temperature=1)).epochs == 1


def test_rows_without_their_tail_teach_where_it_was_measured_to_be_enough(
    taught: TrainConfig, tmp_path: Path
) -> None:
    store = open_store(str(taught.store))
    small = str(tmp_path / "top.zarr")
    request = EncodingRequest(text="topk:9", max_kl=1e-4, at_temperature=4)
    transcode(store, store.snapshots["teacher"], small, request)
    assert train(replace(taught, store=small)).epochs == 1
