"""Values that no writer writes are refused when they are first read (row C17)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import logitstore
from logitstore.cli import app
from tests.attacks.forging import (
    attributes,
    change,
    commit_again,
    logits_of,
    make_store,
    replace_rows,
    served,
)

SNAPSHOT = "snapshots/teacher"


def floats(value: float, kind: str, width: int, column: int = 0) -> NDArray[Any]:
    values = np.zeros((100, width), kind)
    values[17, column] = value
    return values


IMPOSSIBLE: dict[str, tuple[str, str, NDArray[Any]]] = {
    "float32 nan": ("float32", "codes", floats(np.nan, "<f4", 10, 3)),
    "float32 infinity": ("float32", "codes", floats(-np.inf, "<f4", 10, 9)),
    "float16 nan": ("float16", "codes", floats(np.nan, "<f2", 10)),
    "float16 infinity": ("float16", "codes", floats(-np.inf, "<f2", 10, 2)),
    "float16 maximum": ("float16", "scalars", floats(np.nan, "<f4", 2)),
    "uint8 levels": ("uint8:16", "codes", floats(16, "u1", 10, 5)),
    "uint8 maximum": ("uint8:16", "scalars", floats(np.inf, "<f4", 2)),
    "uint8 range": ("uint8:16", "scalars", floats(3.4e38, "<f4", 2, 1)),
    "topk classes": ("topk:3", "indices", floats(10, "<u2", 4, 2)),
    "topk nan": ("topk:3", "codes", floats(np.nan, "<f2", 4)),
    "topk tail": ("topk:3", "scalars", floats(np.inf, "<f4", 2, 1)),
}


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("forged")
    for name, (encoding, array, values) in IMPOSSIBLE.items():
        store = make_store(root / name.replace(" ", "-"), encoding)
        replace_rows(store, f"{SNAPSHOT}/{array}", values)
    return root


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_rows_are_refused_when_first_read(forged: Path, name: str) -> None:
    snapshot = logitstore.open_store(forged / name.replace(" ", "-")).snapshots["teacher"]
    for read in (snapshot.logits, snapshot.rows):
        with pytest.raises(logitstore.LogitstoreError, match="view 0, sample 17: ") as error:
            read([0])
        assert error.value.exit_code == 1
    for mode in ("materialise", "direct"):
        with pytest.raises(logitstore.LogitstoreError, match="view 0, sample 17: "):
            logitstore.prepare_reading(snapshot, mode).rows([0])


def test_impossible_rows_are_neither_sent_nor_accepted(forged: Path, tmp_path: Path) -> None:
    with served(forged, tmp_path / "cache") as server:
        for name in IMPOSSIBLE:
            status, _, body = server.rows(name.replace(" ", "-"), [17])
            assert status == 503
            assert json.loads(body)["type"] == "urn:logitstore:damaged"


@pytest.mark.parametrize("label", [2**31 - 1, 10, -2, -(2**31)])
def test_labels_of_no_class_are_refused_when_first_read(tmp_path: Path, label: int) -> None:
    store = make_store(tmp_path / "s")
    labels = np.arange(100, dtype="<i4") % 10
    labels[17] = label
    replace_rows(store, "labels", labels)
    with pytest.raises(logitstore.LogitstoreError, match=f"sample 17 has label {label}"):
        _ = logitstore.open_store(store).labels


def test_possible_values_are_read_as_before(tmp_path: Path) -> None:
    for encoding in ("float32", "float16", "uint8:16", "topk:3", "topk:9"):
        snapshot = logitstore.open_store(make_store(tmp_path / encoding, encoding)).snapshots
        decoded = snapshot["teacher"].logits(np.arange(100))
        assert (decoded.argmax(axis=1) == logits_of(100, 10).argmax(axis=1)).all()


DATA = "digits?samples=0:60"


def run(*arguments: object) -> Result:
    """Run a command in this process, which imports torch once."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that is bound to its images."""
    root = tmp_path_factory.mktemp("bound")
    student = ("--data", DATA, "--student", "mlp", "--epochs", 1, "--device", "cpu")
    done = run("train", *student, "--out", root / "teacher")
    assert done.exit_code == 0, done.output
    done = run(
        *("build", "--teacher", root / "teacher/model.safetensors", "--arch", "mlp"),
        *("--data", DATA, "--out", root / "s", "--snapshot", "teacher", "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    return root / "s"


def no_canaries(view: Any) -> None:
    view["canaries"] = []


def no_pixels(view: Any) -> None:
    for canary in view["canaries"]:
        canary.update(thumbnail="", sha256="0" * 64)


def few_pixels(view: Any) -> None:
    for canary in view["canaries"]:
        canary.update(thumbnail=canary["thumbnail"][:2], sha256="0" * 64)


def no_sample(view: Any) -> None:
    for canary in view["canaries"]:
        canary.update(sample=10**6)


@pytest.mark.parametrize("forge", [no_canaries, no_pixels, few_pixels, no_sample])
def test_fingerprints_of_nothing_are_no_match(bound: Path, tmp_path: Path, forge: Any) -> None:
    store = Path(shutil.copytree(bound, tmp_path / "s"))
    change(store / SNAPSHOT / "zarr.json", lambda d: forge(attributes(d)["view"]))
    commit_again(store)
    training = ("train", "--store", store, "--data", DATA, "--student", "mlp", "--method", "kd")
    settings = ("--epochs", 1, "--device", "cpu", "--out", tmp_path / "run")
    refused = run(*training, *settings)
    assert refused.exit_code == 2
    assert "--allow-mismatch" in refused.stderr
    if forge is no_canaries:
        assert run(*training, *settings, "--allow-mismatch").exit_code == 0
        notes = json.loads((tmp_path / "run/result.json").read_text())["notes"]
        assert any("no fingerprint" in note for note in notes)
