"""What a run is measured on: held-out samples stay out, test data choose nothing, best and last."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from logitstore.errors import InputError, NotFound
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.views import Views
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.data.requirements import refuse_samples
from logitstore.trainer.data.samples import choose_samples, held_out
from logitstore.trainer.data.source import Source
from logitstore.trainer.measure.figures import measure
from logitstore.trainer.metrics import accuracy
from tests.support.runs import Listener, lines, run_logits

TEST = "digits?train=false"
BASE = TrainConfig(data="digits", student="mlp", out="run")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Small enough, and with a learning rate high enough, that the last epoch is not the best."""
    return TrainConfig(
        data="digits?train=true&samples=0:300",
        student="mlp?hidden=32",
        test=TEST,
        epochs=6,
        lr=0.9,
        schedule="constant",
        snapshots="every-epoch",
        out=str(tmp_path / "run"),
        device="cpu",
    )


def saved(path: Path, samples: np.ndarray) -> str:
    """Some of the digits as a dataset of their own."""
    digits = open_dataset("digits?train=true")
    images = np.stack([np.asarray(digits.image(int(i))) for i in samples])
    np.savez(path, x=images, y=digits.labels[samples])
    return f"npz:{path}?classes=10"


def test_a_split_is_the_same_as_two_datasets_made_by_hand(tmp_path: Path) -> None:
    left, held = held_out(np.arange(300), 0.2, 5)
    assert (len(left), len(held)) == (240, 60)
    assert np.array_equal(np.sort(np.concatenate([left, held])), np.arange(300))
    split = TrainConfig(
        data="digits?train=true&samples=0:300",
        val="split:0.2",
        limit_seed=5,
        student="mlp?hidden=16",
        epochs=3,
        out=str(tmp_path / "split"),
        device="cpu",
    )
    by_hand = replace(
        split,
        data=saved(tmp_path / "left.npz", left),
        val=saved(tmp_path / "held.npz", held),
        out=str(tmp_path / "hand"),
    )
    results = [train(split), train(by_hand)]
    assert results[0].metrics == results[1].metrics
    for name in ("model.safetensors", "best.safetensors"):
        one, other = ((result.run / name).read_bytes() for result in results)
        assert one == other


def hold_out(source: Source, share: float, seed: int) -> tuple[NDArray[np.int64], Source]:
    left, held = held_out(source.samples(), share, seed)
    return left, source.evaluation(held)


def test_held_out_samples_depend_on_the_data_and_their_seed_alone() -> None:
    digits = open_dataset("digits?train=true")
    source = Source(dataset=digits, views=Views(()), classes=10, view_count=1)
    left, val = hold_out(source, 0.1, 3)
    again = hold_out(source, 0.1, 3)[1]
    other = hold_out(source, 0.1, 4)[1]
    assert np.array_equal(val.samples(), again.samples())
    assert not np.array_equal(val.samples(), other.samples())
    assert len(np.intersect1d(left, val.samples())) == 0
    some = np.arange(0, 1200, 3)
    left, val = hold_out(replace(source, subset=some), 0.1, 3)
    assert np.array_equal(np.sort(np.concatenate([left, val.samples()])), some)


def test_a_limit_takes_exactly_so_many_of_what_is_left(config: TrainConfig) -> None:
    few = replace(config, test=None, val="split:0.5", limit=40, epochs=1)
    accuracies = train(few).metrics
    assert (40 * accuracies["train_accuracy"]).is_integer()
    assert round(150 * accuracies["val_accuracy"]) / 150 == accuracies["val_accuracy"]
    with pytest.raises(InputError, match="--limit 151 is more than the 150 samples there are"):
        train(replace(few, limit=151, out=f"{few.out}2"))


def test_last_and_best_are_measured_once_on_the_test_data(config: TrainConfig) -> None:
    heard = Listener()
    result = train(config, progress=heard)
    history = lines(result.run)
    scores = [line["val_accuracy"] for line in history]
    assert result.best_epoch is not None
    assert result.best_epoch == 1 + scores.index(max(scores)) < config.epochs
    best = history[result.best_epoch - 1]
    assert result.best == {name: best[name] for name in ("val_accuracy", "val_nll", "val_ece")}
    assert any("split:0.1 of the training samples" in text for text in heard.messages)
    assert TrainConfig.from_toml(result.run / "config.toml").val == "split:0.1"
    weights = result.run / "best.safetensors"
    kept = result.run / f"snapshots/epoch-{result.best_epoch:04d}.safetensors"
    assert weights.read_bytes() == kept.read_bytes()
    assert result.test == evaluate(result.run, TEST, val="split:0.1", device="cpu")
    assert result.test_best == evaluate(weights, TEST, val="split:0.1", device="cpu")
    assert result.test != result.test_best
    assert result.test["samples"] == 597
    assert result.summary()["test_best_top1"] == result.test_best["top1"]
    assert train(config) == result


def test_where_the_last_epoch_is_the_best_both_figures_are_the_same(config: TrainConfig) -> None:
    result = train(replace(config, epochs=1))
    assert result.best_epoch == 1
    assert result.test is not None
    assert result.test == result.test_best


def test_without_validation_there_is_no_best(config: TrainConfig) -> None:
    result = train(replace(config, test=None, epochs=1))
    assert (result.best_epoch, result.best, result.test, result.test_best) == (None,) * 4
    assert not (result.run / "best.safetensors").exists()


@pytest.mark.parametrize("written", ["metrics.jsonl", "best.safetensors", "model.safetensors"])
def test_a_run_stopped_right_after_a_file_of_its_outcome_ends_in_the_same_bytes(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    whole = train(config)
    part = replace(config, out=f"{config.out} part", checkpoint_seconds=1e-9)
    move = os.replace

    def stopping(source: Any, target: Any, **given: Any) -> None:
        move(source, target, **given)
        if os.fspath(target).endswith(written):
            raise KeyboardInterrupt

    for _ in range(2):
        monkeypatch.setattr(os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(part)
        monkeypatch.setattr(os, "replace", move)
        assert (Path(part.out) / written).exists()
        assert not (Path(part.out) / "result.json").exists()
    resumed = train(part)
    assert replace(resumed, run=whole.run, seconds=0, peak_memory=0) == replace(
        whole, seconds=0, peak_memory=0
    )
    for name in ("model.safetensors", "best.safetensors"):
        assert (resumed.run / name).read_bytes() == (whole.run / name).read_bytes()


def test_test_data_that_are_not_fresh_are_said_to_be_so(config: TrainConfig) -> None:
    chosen = train(replace(config, val=TEST, epochs=1))
    assert any("test data, digits?train=false, are the validation" in n for n in chosen.notes)
    seen = train(replace(config, test=config.data, epochs=1, out=f"{config.out}2"))
    assert any("samples=0:300, are the training data" in note for note in seen.notes)
    fresh = train(replace(config, epochs=1, out=f"{config.out}3"))
    assert fresh.notes == ()


def test_one_path_gives_the_logits_and_their_figures(config: TrainConfig) -> None:
    run = train(replace(config, epochs=2)).run
    logits, labels = run_logits(run, TEST)
    assert (logits.shape, logits.dtype) == ((597, 10), np.float32)
    assert measure(logits, labels) == evaluate(run, TEST, device="cpu")
    held, held_labels = run_logits(run, "split:0.1")
    assert len(held) == 30
    assert accuracy(held, held_labels) == lines(run)[-1]["val_accuracy"]


def test_a_split_stands_for_a_run_s_own_samples_alone(config: TrainConfig, tmp_path: Path) -> None:
    run = train(replace(config, epochs=1)).run
    with pytest.raises(InputError, match=r"split:0\.2: .* was validated on split:0\.1"):
        evaluate(run, "split:0.2")
    elsewhere = tmp_path / "copied.safetensors"
    elsewhere.write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="is in no run that held samples out: give DATA"):
        evaluate(elsewhere, "split:0.1", student="mlp?hidden=32")
    with pytest.raises(NotFound, match="no training run is here"):
        evaluate(tmp_path, TEST)
    for flag in ("match_by", "temperature"):
        with pytest.raises(InputError, match="without a store: give --store STORE, or drop"):
            evaluate(run, TEST, **{flag: {"match_by": "key", "temperature": 2.0}[flag]})


@pytest.mark.parametrize("share", ["0", "1", "x", "", "-0.1", "1.5", "nan", "0.1.2", "0.0"])
def test_a_share_that_is_none_is_refused_when_the_run_is_configured(share: str) -> None:
    with pytest.raises(InputError, match=rf"--val split:{share}: expected the share"):
        replace(BASE, val=f"split:{share}")


def test_test_data_are_never_split_off() -> None:
    with pytest.raises(InputError, match=r"give --test DATA, or --val split:0\.1"):
        replace(BASE, test="split:0.1")


def test_a_split_that_leaves_nothing_is_refused_before_a_folder_is_made(
    config: TrainConfig, tmp_path: Path
) -> None:
    for share, says in (("0.001", "holds out 0 and leaves 300"), ("0.999", "300 and leaves 0")):
        with pytest.raises(InputError, match=rf"split:{share} of 300 samples .*{says}"):
            train(replace(config, test=None, val=f"split:{share}"))
    labels = np.full(20, -1)
    labels[held_out(np.arange(20), 0.1, 0)[0]] = 1
    np.savez(tmp_path / "few.npz", x=np.zeros((20, 8, 8), np.uint8), y=labels)
    with pytest.raises(InputError, match=r"none of the 2 held-out samples of .* has a label"):
        train(replace(config, data=f"npz:{tmp_path}/few.npz?classes=10"))
    np.savez(tmp_path / "blind.npz", x=np.zeros((20, 8, 8), np.uint8), y=np.full(20, -1))
    with pytest.raises(InputError, match=r"--test .* no sample has a label; drop --test"):
        train(replace(config, test=f"npz:{tmp_path}/blind.npz?classes=10"))
    assert not Path(config.out).exists()


def test_samples_that_are_blended_with_others_cannot_be_held_out() -> None:
    digits = open_dataset("digits?train=true")
    views = Views((), mix={"mixup": 0.2})
    source = Source(dataset=digits, views=views, classes=10, view_count=1)
    split = replace(BASE, val="split:0.1")
    with pytest.raises(InputError, match=r"blend each sample .* give --val DATA"):
        refuse_samples(split, source, choose_samples(split, source))
