"""Measuring finished runs: with a teacher, after one fitted temperature, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from logitstore.cli import app
from logitstore.derive.transcode import transcode
from logitstore.errors import InputError, MismatchError
from logitstore.format.choice import EncodingRequest
from logitstore.precompute.data.sources import open_dataset
from logitstore.reading.opening import open_store
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.data.samples import held_out
from logitstore.trainer.measure.calibration import fit_temperature
from logitstore.trainer.measure.figures import compare, fitted_figures, measure
from tests.support.runs import run_logits

TRAIN, TEST = "digits?train=true&samples=0:300", "digits?train=false"
NAMED = """
import numpy as np
from logitstore.precompute.data.sources import open_dataset

class Named:
    def __init__(self, spec, prefix):
        digits = open_dataset(spec)
        order = range(10) if prefix == "digit" else range(9, -1, -1)
        self.classes = [f"{prefix}{number}" for number in order]
        self.items = [
            (np.asarray(digits.image(i)), self.classes.index(f"{prefix}{digits.labels[i]}"))
            for i in range(200)
        ]
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]

def english(): return Named("digits?train=true", "digit")
def test_english(): return Named("digits?train=false", "digit")
def german(): return Named("digits?train=true", "ziffer")
def test_german(): return Named("digits?train=false", "ziffer")
"""


@pytest.fixture(scope="module")
def store(bound_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    logits = 3 * np.random.default_rng(0).standard_normal((1, 300, 10)).astype(np.float32)
    return bound_store(tmp_path_factory.mktemp("stores") / "s.zarr", TRAIN, logits)


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig(
        data=TRAIN,
        val="split:0.2",
        student="mlp?hidden=32",
        store=str(store),
        epochs=8,
        batch_size=32,
        out=str(tmp_path_factory.mktemp("runs") / "run"),
        device="cpu",
    )
    return train(config).run


def test_a_teacher_is_compared_with_at_the_temperature_that_is_asked_for(
    run: Path, store: Path
) -> None:
    ours, theirs = run_logits(run, TRAIN)[0], open_store(store).snapshots["teacher"]
    for given, temperature in ((None, 1.0), (4.0, 4.0)):
        found = evaluate(run, TRAIN, store=str(store), temperature=given, device="cpu")
        expected = compare(ours, theirs.logits(np.arange(300)), temperature)
        assert expected.items() <= found.items()
        assert found["agreement"] == 1 - found["kd_error"]
    with pytest.raises(InputError, match="--temperature must be positive, not 0"):
        evaluate(run, TRAIN, store=str(store), temperature=0.0)


def test_held_out_samples_are_compared_with_their_own_rows(run: Path, store: Path) -> None:
    _, held = held_out(np.arange(300), 0.2, 0)
    found = evaluate(run, "split:0.2", store=str(store), device="cpu")
    logits, labels = run_logits(run, "split:0.2")
    assert np.array_equal(labels, open_dataset(TRAIN).labels[held])
    rows = open_store(store).snapshots["teacher"].logits(held)
    assert found == {**measure(logits, labels), **compare(logits, rows, 1.0)}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["top1"] == last["val_accuracy"]


def test_calibration_is_told_raw_and_after_a_temperature_fitted_elsewhere(run: Path) -> None:
    plain = evaluate(run, TEST, device="cpu")
    found = evaluate(run, TEST, val="split:0.2", device="cpu")
    fitted = fit_temperature(*run_logits(run, "split:0.2"))
    assert found == {**plain, **fitted_figures(*run_logits(run, TEST), fitted)}
    own = evaluate(run, TEST, val=TEST, device="cpu")
    assert own["nll_fitted"] < min(found["nll_fitted"], plain["nll"])


def test_rows_without_their_tail_are_no_measure_at_another_temperature(
    run: Path, store: Path, tmp_path: Path
) -> None:
    small = str(tmp_path / "top.zarr")
    opened = open_store(store)
    transcode(opened, opened.snapshots["teacher"], small, EncodingRequest(text="topk:3"))
    assert "kd_loss" in evaluate(run, TRAIN, store=small, device="cpu")
    with pytest.raises(InputError, match="keeps 3 of 10 classes: its loss at temperature 2"):
        evaluate(run, TRAIN, store=small, temperature=2.0, device="cpu")


def test_data_and_validation_data_may_be_named_as_the_run_s_or_as_its_store_s(
    bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "named.py").write_text(NAMED)
    english, german = (f"{tmp_path}/named.py:{name}" for name in ("english", "german"))
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({f"ziffer{n}": f"digit{n}" for n in range(10)}))
    logits = np.zeros((1, 200, 10), np.float32)
    config = TrainConfig(
        data=german,
        student="mlp?hidden=32",
        store=str(bound_store(tmp_path / "named.zarr", english, logits)),
        class_map=str(mapping),
        epochs=8,
        batch_size=16,
        out=str(tmp_path / "run"),
        device="cpu",
        workers=0,
    )
    out = train(config).run
    tests = [name.replace(":", ":test_") for name in (english, german)]
    found = [evaluate(out, data, val=val, device="cpu") for data in tests for val in tests]
    assert found[0]["top1"] > 0.5  # so that wrongly numbered labels would show
    assert found == [found[0]] * 4
    plain = TrainConfig(data=english, student="mlp", epochs=1, out=str(tmp_path / "p"), workers=0)
    with pytest.raises(MismatchError, match="has a class 'ziffer"):
        evaluate(train(plain).run, tests[0], val=tests[1], device="cpu")


def test_the_command_prints_what_the_call_returns(run: Path, store: Path) -> None:
    arguments = ["evaluate", str(run), "--data", TRAIN, "--store", str(store)]
    arguments += ["--temperature", "4", "--val", "split:0.2", "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(done.stdout) == evaluate(
        run, TRAIN, val="split:0.2", store=str(store), temperature=4.0, device="cpu"
    )
    shown = CliRunner().invoke(app, arguments).stdout
    for name in ("ece10 ", "ece15 ", "aurc ", "eaurc ", "kd_loss ", "fitted_temperature "):
        assert name in shown
