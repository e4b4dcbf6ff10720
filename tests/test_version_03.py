"""A store and two runs that version 0.3.0 left behind open, teach, grow and go on.

Version 0.3.0 made ``data/v0.3`` on a CPU, in that folder, with ``DATA`` as ``--data``:

    train --student 'mlp?hidden=2' --epochs 2 --batch-size 4 --lr 0.2 --snapshots 2 --out teacher
    build --teacher teacher --out digits.zarr
    build --teacher teacher/model.safetensors --arch 'mlp?hidden=2' --view-spec flip.json \
        --views 2 --seed 3 --encoding uint8 --snapshot flipped --out digits.zarr
    train --student 'mlp?hidden=2' --store digits.zarr --snapshot flipped --method kd --epochs 3 \
        --batch-size 4 --lr 0.2 --val 'digits?train=false&samples=0:20' --out student
    build --teacher teacher/model.safetensors --arch 'mlp?hidden=2' --shard-rows 4 \
        --snapshot begun --out digits.zarr

The student was killed after its first epoch of three, the last build after two of its three shards.
The files of TensorBoard and the locks of runs were deleted.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore
from tests.support.commands import run
from tests.support.runs import history, lines
from tests.support.stores import tree

DATA = "digits?train=true&samples=0:12"
ROOTS = {
    "epoch-0002": "30e44e7acd4c156485c1890c3393f10a0f5270775fc70616203de69aab75f248",
    "flipped": "9deec42dbd6a7b2ba00d8ca63f0ffdd904ad13dabc6259b0497430247447643a",
}
LOSSES = [0.2622932381927967, 0.23997019107143083, 0.22254807874560356]
"""Losses of the student's three epochs, as 0.3.0 had them without an interruption."""

CHECKPOINT = ("--teacher", "teacher/model.safetensors", "--arch", "mlp?hidden=2", "--data", DATA)
BUILD = ("build", *CHECKPOINT, "--device", "cpu", "--out", "digits.zarr", "--json")
BEGUN = (*BUILD, "--shard-rows", 4, "--snapshot", "begun")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what 0.3.0 left behind, as the working folder."""
    copy = tmp_path / "v0.3"
    shutil.copytree(Path(__file__).parent / "data/v0.3", copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def same_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages of that day, but for logitstore: a build goes on only with the same ones."""
    plan = json.loads((folder / "digits.zarr/.build/begun/plan.json").read_bytes())
    versions = {**plan["packages"], "logitstore": "0.4.0"}
    monkeypatch.setattr("logitstore.writing.plan.version", versions.__getitem__)


def done(*arguments: object) -> Any:
    """The JSON that a command prints."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def roots() -> dict[str, str]:
    snapshots = logitstore.open_store("digits.zarr").snapshots
    return {name: snapshot.root for name, snapshot in snapshots.items()}


def test_the_store_opens_and_its_rows_are_the_teacher_s() -> None:
    assert roots() == ROOTS
    teacher = ("--teacher", "teacher", "--data", DATA, "--device", "cpu")
    report = done("verify", "digits.zarr", "--snapshot", "epoch-0002", *teacher, "--json")
    assert report["ok"]
    assert done("verify", "digits.zarr", "--json")["ok"]


def test_the_store_teaches_a_new_student() -> None:
    done("train", "--config", "student/config.toml", "--out", "new", "--json")
    assert [line["loss"] for line in lines("new")] == pytest.approx(LOSSES, rel=1e-4)


def test_the_store_grows_and_the_new_views_continue_the_old_ones() -> None:
    before = tree(Path("digits.zarr"))
    views = ("--view-spec", "flip.json", "--views", 2, "--first-view", 2, "--seed", 3)
    done(*BUILD, *views, "--encoding", "auto", "--snapshot", "more")
    after = tree(Path("digits.zarr"))
    assert {key: digest for key, digest in after.items() if key in before} == before
    assert {name: root for name, root in roots().items() if name != "more"} == ROOTS
    assert done("verify", "digits.zarr", "--json")["ok"]
    both = ("--snapshot", "flipped+more", "--out", "new", "--epochs", 4, "--json")
    assert done("train", "--config", "student/config.toml", *both)["views_seen"] == [1, 1, 1, 1]


@pytest.mark.usefixtures("same_packages")
def test_the_unfinished_build_goes_on_and_still_names_the_version_that_began_it() -> None:
    arrays = [Path("digits.zarr/snapshots/begun") / name for name in ("codes", "scalars")]
    finished = [array / f"c/0/{shard}/0" for array in arrays for shard in (0, 1)]
    written = [path.stat().st_mtime_ns for path in finished]
    done(*BEGUN)
    assert [path.stat().st_mtime_ns for path in finished] == written
    assert done("verify", "digits.zarr", "--json")["ok"]
    snapshots = logitstore.open_store("digits.zarr").snapshots
    assert snapshots["begun"].meta.packages["logitstore"] == "0.3.0"
    np.testing.assert_allclose(
        snapshots["begun"].logits(range(12)), snapshots["epoch-0002"].logits(range(12)), atol=1e-3
    )


@pytest.mark.usefixtures("same_packages")
def test_the_unfinished_build_begun_afresh_names_this_version() -> None:
    done(*BEGUN, "--fresh")
    begun = logitstore.open_store("digits.zarr").snapshots["begun"]
    assert begun.meta.packages["logitstore"] == "0.4.0"


@pytest.mark.usefixtures("same_packages")
def test_the_same_build_again_finds_its_snapshot_finished() -> None:
    before = tree(Path("digits.zarr"))
    again = ("--data", DATA, "--out", "digits.zarr", "--device", "cpu", "--json")
    (built,) = done("build", "--teacher", "teacher", *again)["snapshots"]
    assert built["root"] == ROOTS["epoch-0002"]
    assert tree(Path("digits.zarr")) == before


def test_the_interrupted_run_goes_on_where_it_stopped() -> None:
    (first,) = history("student")
    result = run("train", "--config", "student/config.toml")
    assert result.exit_code == 0, result.output
    assert "going on at epoch 2" in result.stderr
    assert history("student")[0] == first
    assert [line["loss"] for line in lines("student")] == pytest.approx(LOSSES, rel=1e-4)


def test_the_finished_run_is_found_finished_measured_and_begun_from() -> None:
    before = tree(Path("teacher"))
    assert "already finished" in run("train", "--config", "teacher/config.toml").stderr
    assert {key: digest for key, digest in tree(Path("teacher")).items() if key in before} == before
    figures = done("evaluate", "teacher", "--data", "digits?train=false", "--json")
    assert figures["top1"] == pytest.approx(0.10385259631490787)
    begin = ("--init", "teacher", "--out", "new", "--epochs", 1, "--json")
    done("train", "--config", "teacher/config.toml", "--snapshots", 1, *begin)
