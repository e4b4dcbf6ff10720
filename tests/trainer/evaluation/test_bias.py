"""Classes that a student never sees, and the bias that is corrected for them afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from logitstore.errors import InputError, LogitstoreError, MismatchError, NotFound, UnknownName
from logitstore.precompute.data.sources import open_dataset
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.evaluation.bias import correct_bias
from logitstore.trainer.evaluation.shifts import (
    before_and_after,
    correct_by_prior,
    correct_by_validation,
    shifted,
)
from tests.support.commands import run as run_command
from tests.support.runs import run_logits

TRAIN, TEST = "digits?samples=0:400", "digits?train=false"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that never saw a 3 or a 5."""
    out = tmp_path_factory.mktemp("runs") / "omitted"
    train(
        TrainConfig(
            data=TRAIN,
            student="mlp?hidden=32",
            omit_classes=("3", 5),
            epochs=15,
            batch_size=32,
            out=str(out),
            device="cpu",
        )
    )
    return out


def some(samples: int, classes: int, low: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits that are right more often than not, with class 0 (and 1) too low by ``low``."""
    labels = RNG.integers(0, classes, samples)
    logits = RNG.standard_normal((samples, classes)) + 2 * np.eye(classes)[labels]
    logits[:, :2] -= low
    return logits, labels


def test_the_run_never_learns_what_it_never_saw(run: Path) -> None:
    digits = open_dataset(TRAIN)
    gone = int(np.isin(digits.labels, (3, 5)).sum())
    result = json.loads((run / "result.json").read_text())
    assert f"{gone} of 400 samples omitted, those of class 3,5" in result["notes"]
    logits, labels = run_logits(run, TEST)
    guess = logits.argmax(1)
    assert not np.isin(guess, (3, 5)).any()
    assert (guess == labels)[~np.isin(labels, (3, 5))].mean() > 0.85


def test_an_omission_is_part_of_what_a_run_is(run: Path) -> None:
    config = TrainConfig.from_toml(run / "config.toml")
    assert config.omit_classes == ("3", 5)
    with pytest.raises(MismatchError, match="omit_classes = "):
        train(replace(config, omit_classes=("3",)))


@pytest.mark.parametrize("classes", [[0], [0, 1], [2, 0]])
@pytest.mark.parametrize("low", [0.0, 3.5, -2.0])
def test_no_other_shift_is_more_accurate(classes: list[int], low: float) -> None:
    logits, labels = some(120, 4, low)
    shift = correct_by_validation(logits, labels, classes)
    figures = before_and_after(logits, labels, classes, shift)
    assert figures is not None
    inside = np.isin(np.arange(4), classes)
    # All shifts where something can change, from the definition: just before and just after each.
    edges = logits[:, ~inside].max(1) - logits[:, inside].max(1)
    tried = np.concatenate([edges - 1e-9, edges + 1e-9, [0.0]])
    errors = np.array([(shifted(logits, classes, b).argmax(1) != labels).sum() for b in tried])
    assert figures["after"]["errors"] == errors.min()
    assert (shifted(logits, classes, shift).argmax(1) != labels).sum() == errors.min()
    assert figures["before"]["errors"] == (logits.argmax(1) != labels).sum()
    # No best shift is nearer to 0 but in the same interval, all of which is as good.
    nearer = np.abs(tried[errors == errors.min()]).min()
    between = (np.abs(tried) >= nearer) & (np.abs(tried) <= abs(shift)) & (tried * shift >= 0)
    assert (errors[between] == errors.min()).all()


def test_equally_good_shifts_are_decided_for_the_nearest_to_none() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert correct_by_validation(logits, [0, 1], [0]) == 0.0
    # Right from +1 to +3: the middle, as an edge would be a matter of rounding.
    logits = np.array([[0.0, 1.0], [0.0, 3.0]])
    assert correct_by_validation(logits, [0, 1], [0]) == 2.0
    figures = before_and_after(logits, np.array([0, 1]), [0], 2.0)
    assert figures is not None
    assert (figures["before"]["errors"], figures["after"]["errors"]) == (1, 0)
    assert (figures["before"]["class_errors"], figures["after"]["class_errors"]) == (1, 0)
    # Right from +1 on, and the other sample at no shift: 1 beyond it.
    logits = np.array([[0.0, 1.0, -5.0], [-9.0, 0.0, 4.0]])
    assert correct_by_validation(logits, [0, 1], [0]) == 2.0


def test_samples_without_a_label_count_nowhere() -> None:
    logits, labels = some(60, 3, 2.0)
    more = np.concatenate([logits, RNG.standard_normal((50, 3))])
    unknown = np.concatenate([labels, np.full(50, -1)])
    assert correct_by_validation(more, unknown, [0]) == correct_by_validation(logits, labels, [0])


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_validation_data_without_both_sides_tell_nothing(labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"labelled sample is of class 0: .* use --by prior"):
        correct_by_validation(np.eye(2), labels, [0])


@pytest.mark.parametrize("low", [0.0, 5.0, 60.0])
def test_one_class_meets_its_prior_as_a_root_finder_says(low: float) -> None:
    logits, _ = some(200, 5, low)
    shift = correct_by_prior(logits, np.full(5, 0.2), [0])

    def excess(b: float) -> float:
        return float(softmax(shifted(logits, [0], b), axis=1)[:, 0].mean() - 0.2)

    assert shift == pytest.approx(brentq(excess, -100, 100, xtol=1e-12), abs=1e-6)


def test_several_classes_meet_their_priors_together() -> None:
    logits, _ = some(300, 6, 8.0)
    prior = np.array([0.3, 0.05, 0.2, 0.15, 0.1, 0.2])
    shift = correct_by_prior(logits, prior, [1, 0, 4])
    p = softmax(shifted(logits, [1, 0, 4], shift), axis=1).mean(0)
    assert p[[1, 0, 4]] == pytest.approx(prior[[1, 0, 4]], abs=1e-9)
    again = correct_by_prior(shifted(logits, [1, 0, 4], shift), prior, [1, 0, 4])
    assert again == pytest.approx(np.zeros(3), abs=1e-7)


@pytest.mark.parametrize("low", [-60.0, 60.0, 300.0])
@pytest.mark.parametrize("scale", [1.0, 5.0, 30.0])
def test_logits_far_from_the_prior_meet_it_too(low: float, scale: float) -> None:
    prior = np.array([0.3, 0.05, 0.2, 0.15, 0.1, 0.2])
    for seed in range(5):
        logits = scale * np.random.default_rng(seed).standard_normal((50, 6))
        logits[:, :3] -= low
        shift = correct_by_prior(logits, prior, [0, 1, 2])
        p = softmax(shifted(logits, [0, 1, 2], shift), axis=1).mean(0)
        assert p[:3] == pytest.approx(prior[:3], abs=1e-9)


@pytest.mark.parametrize(
    "prior", [[0.5, 0.5], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [np.nan, 0.5, 0.5], [-0.1, 0.6, 0.5]]
)
def test_a_prior_that_no_shift_can_meet_is_refused(prior: list[float]) -> None:
    with pytest.raises(InputError, match="expected a share above 0 for each corrected class"):
        correct_by_prior(np.zeros((4, 3)), prior, [0])


def test_the_corrected_weights_give_the_shifted_logits(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "corrected.safetensors"
    # Of classes that were never seen validation shifts the best alone; the test set only measures.
    command = ("correct-bias", run, "--data", TRAIN, "--test", TEST, "--out", out, "--json")
    done = run_command(*command, "--device", "cpu")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["classes"], found["by"], found["names"]) == ([3, 5], "validation", ["3", "5"])
    assert found["shift"][0] == found["shift"][1] > 0
    before, after = found["test"]["before"], found["test"]["after"]
    assert after["errors"] < before["errors"]
    assert before["class_errors"] == before["class_samples"]
    logits, labels = run_logits(run, TEST)
    moved, _ = run_logits(out, TEST, student="mlp?hidden=32")
    assert moved == pytest.approx(shifted(logits, [3, 5], np.array(found["shift"])), abs=1e-4)
    assert after["errors"] == (moved.argmax(1) != labels).sum()
    logits, labels = run_logits(run, TRAIN)
    chosen = correct_by_validation(logits, labels, [3, 5])
    assert found["shift"] == [chosen, chosen]
    assert found["data"] == before_and_after(logits, labels, [3, 5], chosen)


def test_the_prior_comes_from_a_store_or_from_the_command(
    run: Path, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    labels = open_dataset(TRAIN).labels
    store = bound_store(tmp_path / "s.zarr", TRAIN, np.zeros((1, 400, 10), np.float32))
    shares = np.bincount(labels, minlength=10) / 400
    logits, _ = run_logits(run, TRAIN)
    expected = correct_by_prior(logits, shares, [5, 3])
    told = ",".join(map(repr, shares[[5, 3]].tolist()))
    for prior in (str(store), told):
        done = run_command(
            *("correct-bias", run, "--data", TRAIN, "--by", "prior", "--prior", prior),
            *("--class", "5,3", "--json", "--device", "cpu"),
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["shift"] == pytest.approx(expected.tolist(), abs=1e-9)
    uniform = correct_bias(run, TRAIN, by="prior", device="cpu")
    assert uniform["shift"] == pytest.approx(
        correct_by_prior(logits, np.full(10, 0.1), [3, 5]).tolist()
    )


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"classes": list(range(10))}, InputError, "a shift of all logits changes nothing"),
        ({"classes": ["x"]}, UnknownName, "unknown class"),
        ({"data": "digits?samples=0:1"}, InputError, "use --by prior"),
        ({"by": "prior", "prior": [0.1]}, InputError, "1 shares for 2 classes"),
        ({"out": "x.pt"}, InputError, r"ends in \.safetensors"),
        ({"out": "nowhere/x.safetensors"}, NotFound, "no such folder"),
    ],
)
def test_a_correction_that_cannot_be_made_is_refused(
    run: Path, change: dict[str, Any], error: type[LogitstoreError], says: str
) -> None:
    given: dict[str, Any] = {"data": TRAIN, "device": "cpu", **change}
    with pytest.raises(error, match=says):
        correct_bias(run, given.pop("data"), **given)


def test_a_correction_never_replaces_other_weights(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    for _ in range(2):  # the same command again is no harm
        correct_bias(run, TRAIN, by="prior", out=out, device="cpu")
    model = run / "model.safetensors"
    before = model.read_bytes()
    with pytest.raises(InputError, match="other weights are there"):
        correct_bias(run, TRAIN, by="prior", out=model, device="cpu")
    assert model.read_bytes() == before


def test_a_network_without_a_last_bias_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def bare(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))\n"
        "def scaled():\n"
        "    class Half(nn.Module):\n"
        "        def forward(self, x): return x / 2\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Half())\n"
    )
    out = tmp_path / "new.safetensors"
    for name, says in (("bare", "no linear layer with 10 outputs and a bias"), ("scaled", "after")):
        student = f"{tmp_path}/net.py:{name}"
        common = {"data": TRAIN, "student": student, "epochs": 1, "device": "cpu"}
        result = train(TrainConfig(**common, omit_classes=(3,), out=str(tmp_path / name)))
        with pytest.raises(InputError, match=says):
            correct_bias(result.run, TRAIN, by="prior", out=out, student=student, device="cpu")
        assert not out.exists()
