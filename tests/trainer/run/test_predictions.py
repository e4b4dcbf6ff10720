"""PS-KD: a student's own predictions, kept by sample through shuffles, epochs and interruptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from logitstore.errors import InputError
from logitstore.reading.opening import open_store
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.run.predictions import PastPredictions, encoded
from tests.support.runs import Listener, history, run_logits

SAMPLES = np.array([3, 4, 7, 11])


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Four epochs of three steps, shuffled, the last batch smaller."""
    return TrainConfig(
        data="digits?train=true&samples=0:300",
        student="mlp?hidden=16",
        method="ps-kd",
        epochs=4,
        batch_size=128,
        lr=0.2,
        limit=290,
        out=str(tmp_path / "undisturbed"),
        device="cpu",
        checkpoint_seconds=1e-9,
    )


def test_before_anything_was_predicted_a_row_is_one_hot_at_its_label() -> None:
    past = PastPredictions.begin(SAMPLES, np.array([0, 2, 1, 2]), classes=3)
    expected = torch.eye(3)[torch.tensor([2, 0])]
    assert torch.equal(past.probabilities(np.array([11, 3]), epoch=0), expected)


def test_a_row_is_found_by_its_sample_whatever_the_order() -> None:
    past = PastPredictions.begin(SAMPLES, np.zeros(4, np.int64), classes=5)
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    past.put(np.array([7, 3, 11, 4]), encoded(logits), epoch=0)
    found = past.probabilities(np.array([4, 7]), epoch=1)
    torch.testing.assert_close(found, logits[[3, 0]].softmax(1), atol=0.005, rtol=0)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 10.0])
def test_a_kept_row_sums_to_one_and_is_near_its_original(classes: int, spread: float) -> None:
    logits = torch.randn(200, classes, generator=torch.Generator().manual_seed(1)) * spread
    past = PastPredictions.begin(np.arange(200), np.zeros(200, np.int64), classes)
    past.put(np.arange(200), encoded(logits), epoch=0)
    found = past.probabilities(np.arange(200), epoch=1)
    assert past.codes.dtype == torch.uint8
    torch.testing.assert_close(found.sum(1), torch.ones(200))
    assert (found - logits.softmax(1)).abs().sum(1).max() / 2 < 0.011


def test_a_longer_history_is_the_mean_of_the_last_epochs() -> None:
    past = PastPredictions.begin(np.arange(2), np.zeros(2, np.int64), classes=4, epochs=2)
    drawn = [torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for epoch, logits in enumerate(drawn):
        past.put(np.arange(2), encoded(logits), epoch)
    one_epoch = PastPredictions.begin(np.arange(2), np.zeros(2, np.int64), classes=4, epochs=2)
    one_epoch.put(np.arange(2), encoded(drawn[0]), 0)
    probs = [logits.softmax(1) for logits in drawn]
    near = {"atol": 0.005, "rtol": 0}
    torch.testing.assert_close(one_epoch.probabilities(np.arange(2), 1), probs[0], **near)
    mean = (probs[1] + probs[2]) / 2
    torch.testing.assert_close(past.probabilities(np.arange(2), 3), mean, **near)


def test_the_first_epoch_is_plain_cross_entropy(config: TrainConfig, tmp_path: Path) -> None:
    once = {"epochs": 1, "schedule": "constant"}
    train(replace(config, **once))
    train(replace(config, **once, method="ce", out=str(tmp_path / "ce")))
    ours, plain = history(config.out)[0], history(str(tmp_path / "ce"))[0]
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-6)


@pytest.mark.parametrize("step", [2, 5, 6, 11])
@pytest.mark.parametrize("ways", [{}, {"past": "clean"}, {"history": 2, "micro_batch": 50}])
def test_an_interrupted_run_ends_in_the_same_bytes(
    config: TrainConfig, ways: dict[str, object], step: int, tmp_path: Path
) -> None:
    config = replace(config, **ways)
    train(config)
    resumed = replace(config, out=str(tmp_path / "resumed"))
    with pytest.raises(KeyboardInterrupt):
        train(resumed, progress=Listener(step, any_task=True))
    train(resumed)
    for name in ("model.safetensors", "checkpoints/last.safetensors"):
        first, second = (Path(run) / name for run in (config.out, resumed.out))
        assert first.read_bytes() == second.read_bytes()
    assert history(config.out) == history(resumed.out)


def test_a_run_without_its_history_does_not_go_on(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Listener(5, any_task=True))
    last = Path(config.out) / "checkpoints/last.safetensors"
    with safe_open(last, framework="pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys() if key != "past"}  # noqa: SIM118  # not a dict
        header = file.metadata()
    save_file(kept, last, header)
    with pytest.raises(InputError, match=r"no past predictions.*\(1, 290, 10\).*another --out"):
        train(config)


def test_clean_predictions_are_those_of_the_epochs_end(config: TrainConfig) -> None:
    once = replace(config, epochs=1, past="clean", data="digits?train=true&samples=0:290")
    train(once)
    logits, _ = run_logits(once.out, once.data)
    last = Path(once.out) / "checkpoints/last.safetensors"
    with safe_open(last, framework="pt") as file:
        codes = file.get_tensor("past")
    expected = PastPredictions.begin(np.arange(290), np.zeros(290, np.int64), classes=10)
    expected.put(np.arange(290), encoded(torch.from_numpy(logits)), epoch=0)
    assert (codes.int() - expected.codes.int()).abs().max() <= 1


def test_recorded_logits_are_each_epochs_own_and_can_teach(
    config: TrainConfig, tmp_path: Path
) -> None:
    told = replace(config, method="ce", limit=None, epochs=3, record_logits=True)
    train(told)
    own = open_store(Path(told.out) / "self.zarr")
    assert list(own.snapshots) == ["epoch-0001", "epoch-0002", "epoch-0003"]
    top1 = [snapshot.meta.top1 for snapshot in own.snapshots.values()]
    assert top1[2] is not None
    assert top1[2] > top1[0]
    for snapshot in own.snapshots.values():
        assert snapshot.meta.teacher is not None
        assert snapshot.meta.teacher.file == f"{snapshot.name}.safetensors"
    taught = replace(
        told,
        method="kd",
        record_logits=False,
        store=f"{told.out}/self.zarr",
        snapshot="epoch-0003",
        out=str(tmp_path / "taught"),
    )
    assert train(taught).metrics["train_kd_error"] < 0.9


def test_recording_changes_nothing_in_the_student_and_resumes(
    config: TrainConfig, tmp_path: Path
) -> None:
    plain = replace(config, epochs=3)
    train(plain)
    told = replace(plain, record_logits=True, out=str(tmp_path / "told"))
    with pytest.raises(KeyboardInterrupt):
        train(told, progress=Listener(5, any_task=True))
    train(told)
    ours, theirs = (Path(run) / "model.safetensors" for run in (plain.out, told.out))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(open_store(Path(told.out) / "self.zarr").snapshots) == 3


def test_one_label_is_needed_for_each_image(config: TrainConfig, tmp_path: Path) -> None:
    labels = np.arange(40, dtype=np.int64) % 10
    labels[[3, 8]] = -1
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", x=images, y=labels)
    with pytest.raises(InputError, match=r"'ps-kd'.*2"):
        train(replace(config, data=f"npz:{tmp_path}/d.npz?classes=10", limit=None))
