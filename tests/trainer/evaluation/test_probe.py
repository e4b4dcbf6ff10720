"""Linear probes: the regression itself on pixels, then networks with and without a last Linear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from logitstore.cli import app
from logitstore.errors import InputError, MismatchError
from logitstore.precompute.data.sources import open_dataset
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.evaluation.probe import probe_features

TRAIN, TEST = "digits?train=true&samples=0:400", "digits?train=false&samples=0:200"
NETWORKS = """
from torch import nn

def straight(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def convolved(): return nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(1, 10, 8)
        self.gate = nn.Linear(8, 8)
    def forward(self, x):
        return self.head(x * self.gate(x).sigmoid()).flatten(1)

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(5, 10), nn.Linear(64, 5)
    def forward(self, x):
        return self.last(self.first(x.flatten(1)).relu())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten classes, with 32 features."""
    out = tmp_path_factory.mktemp("runs") / "ten"
    config = TrainConfig(data=TRAIN, student="mlp?hidden=64,32", epochs=4, out=str(out))
    return train(config).run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NETWORKS)
    return tmp_path


def weights(files: Path, factory: str) -> dict[str, Any]:
    """A checkpoint of one of the networks, as arguments of ``probe_features``."""
    namespace: dict[str, Any] = {}
    exec(NETWORKS, namespace)
    torch.save(namespace[factory]().state_dict(), files / "weights.pt")
    return {
        "run_or_checkpoint": files / "weights.pt",
        "student": f"{files}/net.py:{factory}",
        "classes": 10,
        "device": "cpu",
    }


def pixels(spec: str) -> tuple[np.ndarray, np.ndarray]:
    dataset = open_dataset(spec)
    images = [np.asarray(dataset.image(i)).ravel() / 255 for i in range(len(dataset))]
    return np.array(images), dataset.labels


def test_a_probe_of_the_pixels_is_the_regression_on_them(files: Path) -> None:
    (x, y), (test_x, test_y) = pixels(TRAIN), pixels(TEST)
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    by_hand = LogisticRegression(max_iter=2000).fit((x - mean) / std, y)
    expected = (by_hand.predict((test_x - mean) / std) == test_y).mean()
    found = probe_features(data=TRAIN, test=TEST, **weights(files, "straight"))
    assert found["top1"] == pytest.approx(expected, abs=0.006)  # one sample of 200: float32 pixels
    assert (found["features"], found["samples"], found["train_samples"]) == (64, 200, 400)
    assert found["converged"] == 1
    assert found["train_top1"] > found["top1"] > 0.85


def test_features_are_what_the_layer_that_is_called_last_is_given(files: Path, run: Path) -> None:
    assert probe_features(data=TRAIN, test=TEST, **weights(files, "Late"))["features"] == 5
    assert probe_features(run, TRAIN, TEST, device="cpu")["features"] == 32


def test_the_other_data_may_be_of_other_classes(run: Path, files: Path) -> None:
    x, y = pixels(TRAIN)
    images = np.rint(255 * x).astype(np.uint8).reshape(-1, 8, 8)
    parity = np.where(np.arange(len(y)) % 7 == 0, -1, y % 2)
    for name, part in (("train", slice(300)), ("test", slice(300, 400))):
        np.savez(files / f"{name}.npz", x=images[part], y=parity[part])
    found = probe_features(run, f"npz:{files}/train.npz", f"npz:{files}/test.npz", device="cpu")
    assert found["top1"] > 0.7
    assert found["train_samples"] == (parity[:300] >= 0).sum()
    assert found["samples"] == (parity[300:] >= 0).sum()


@pytest.mark.parametrize("factory", ["convolved", "Gated"])
def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(
    files: Path, factory: str
) -> None:
    with pytest.raises(InputError, match="do not come from a Linear layer"):
        probe_features(data=TRAIN, test=TEST, **weights(files, factory))


def test_what_cannot_be_probed_says_why(run: Path, files: Path) -> None:
    unknown = {**weights(files, "straight"), "classes": None}
    with pytest.raises(InputError, match="give --classes N"):
        probe_features(data=TRAIN, test=TEST, **unknown)
    x = np.zeros((30, 8, 8), np.uint8)
    np.savez(files / "one.npz", x=x, y=np.zeros(30, int))
    np.savez(files / "three.npz", x=x, y=np.arange(30) % 3)
    np.savez(files / "wide.npz", x=np.zeros((30, 9, 9), np.uint8), y=np.arange(30) % 3)
    one, three, wide = (f"npz:{files}/{name}.npz" for name in ("one", "three", "wide"))
    with pytest.raises(InputError, match=r"--data .*one\.npz: a probe needs labels of two classes"):
        probe_features(run, one, three, device="cpu")
    with pytest.raises(MismatchError, match="use the same classes"):
        probe_features(run, f"{three}?classes=3", TEST, device="cpu")
    for data, test in ((wide, three), (three, wide)):
        with pytest.raises(InputError, match=r"does not run on images of shape \(1, 9, 9\)"):
            probe_features(run, data, test, device="cpu")
    assert probe_features(run, three, wide, size=8, device="cpu")["samples"] == 30


def test_the_command_prints_the_figures(run: Path) -> None:
    arguments = ["probe", str(run), "--data", TRAIN, "--test", TEST, "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(done.stdout) == probe_features(run, TRAIN, TEST, device="cpu")
    assert "features" in CliRunner().invoke(app, arguments).stdout
