"""One student for each snapshot, method and seed: the table is what the runs say, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from logitstore.cli import app
from logitstore.errors import InputError, LogitstoreError, MismatchError, UnknownName
from logitstore.precompute.data.sources import open_dataset
from logitstore.progress import Silent
from logitstore.reading.opening import open_store
from logitstore.trainer import TrainConfig, sweep, train
from logitstore.trainer.studies.seeds import OverSeeds
from logitstore.trainer.studies.sweep_students import chosen_teachers
from logitstore.trainer.studies.sweep_table import Row, find_best, sweep_lines
from tests.support.runs import lines

DATA, VAL = "digits?train=true&samples=0:300", "digits?train=false"
RIGHT = {"epoch-2": 0.5, "epoch-9": 1.0, "epoch-10": 0.1}


@pytest.fixture(scope="module")
def store(bound_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers that are sure of the label of some samples, and of another class of the rest."""
    path = tmp_path_factory.mktemp("sweep") / "s.zarr"
    labels = open_dataset(DATA).labels
    for name, share in RIGHT.items():
        told = np.where(np.arange(300) < 300 * share, labels, (labels + 1) % 10)
        logits = 9 * np.eye(10, dtype=np.float32)[told]
        bound_store(path, DATA, logits[None], name=name)
    return path


@pytest.fixture
def settings(store: Path) -> dict[str, Any]:
    return {
        "data": DATA,
        "val": VAL,
        "student": "mlp?hidden=16",
        "store": str(store),
        "epochs": 3,
        "batch_size": 32,
        "device": "cpu",
    }


def test_the_table_holds_what_the_runs_say_and_the_teacher_that_is_right_teaches_best(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = sweep({**settings, "kd_warmup": 0}, out, methods=["kd", "dkd"], seeds=[3, 4])
    assert [(row.method, row.snapshot) for row in found.rows] == [
        ("ce", None),
        *[(method, name) for method in ("kd", "dkd") for name in RIGHT],
    ]
    plain = [lines(out / f"ce-seed{seed}")[-1]["val_accuracy"] for seed in (3, 4)]
    for row in found.rows:
        name = row.method if row.snapshot is None else f"{row.method}-{row.snapshot}"
        assert row.runs == tuple(str(out / f"{name}-seed{seed}") for seed in (3, 4))
        logged = [[line["val_accuracy"] for line in lines(Path(run))] for run in row.runs]
        last = [epochs[-1] for epochs in logged]
        assert row.last.values == tuple(last)
        assert row.last.mean == pytest.approx(mean(last))
        assert row.last.deviation == pytest.approx(stdev(last))
        assert row.best.values == tuple(max(epochs) for epochs in logged)
        if row.snapshot is None:
            assert row.gain is row.kd_error is row.teacher_top1 is None
            continue
        assert row.teacher_top1 == pytest.approx(RIGHT[row.snapshot])
        assert row.gain is not None
        assert row.gain.values == tuple(a - b for a, b in zip(last, plain, strict=True))
        assert row.kd_error is not None
        assert row.kd_error.values == tuple(lines(Path(r))[-1]["train_kd_error"] for r in row.runs)
    assert [(f.method, f.best, f.last) for f in found.findings] == [
        ("kd", "epoch-9", "epoch-10"),
        ("dkd", "epoch-9", "epoch-10"),
    ]
    assert json.loads((out / "sweep.json").read_text()) == json.loads(json.dumps(found.summary()))
    assert "kd: epoch-9 teaches best" in sweep_lines(found.rows, found.findings)[-2]


def test_a_cell_is_the_run_that_train_makes(settings: dict[str, Any], tmp_path: Path) -> None:
    found = sweep(
        {**settings, "temperature": 2.0, "beta": 3.0},
        tmp_path / "out",
        snapshots="mean(epoch-2,epoch-9*3)",
        methods=["dkd", "kd"],
        seeds=[1],
        baseline=False,
    )
    folders = [Path(run).name for row in found.rows for run in row.runs]
    assert folders == ["dkd-mean_epoch-2_epoch-9_3-seed1", "kd-mean_epoch-2_epoch-9_3-seed1"]
    assert found.rows[0].teacher_top1 is None
    assert found.findings == ()
    alone = TrainConfig(
        **settings,
        temperature=2.0,
        method="kd",
        snapshot="mean(epoch-2,epoch-9*3)",
        seed=1,
        out=str(tmp_path / "alone"),
    )
    train(alone)
    weights = [
        (run / "model.safetensors").read_bytes()
        for run in (tmp_path / "alone", tmp_path / "out" / folders[1])
    ]
    assert weights[0] == weights[1]
    assert TrainConfig.from_toml(tmp_path / "out" / folders[0] / "config.toml").beta == 3.0


class Students(Silent):
    """What was trained, and Ctrl-C at a step."""

    def __init__(self, steps: int = -1) -> None:
        self.trained: list[str] = []
        self.left = steps

    def start(self, task: str, total: int, unit: str) -> None:
        if task.startswith("training"):
            self.trained.append(Path(task).name)

    def advance(self, count: int) -> None:
        self.left -= bool(self.trained)
        if self.left == 0:
            raise KeyboardInterrupt


def test_the_same_sweep_goes_on_and_trains_no_student_twice(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    first, again, more = Students(steps=45), Students(), Students()
    asked = {"snapshots": "epoch-2,epoch-9", "seeds": [0]}
    with pytest.raises(KeyboardInterrupt):
        sweep(settings, tmp_path / "out", progress=first, **asked)  # type: ignore[arg-type]
    whole = sweep(settings, tmp_path / "out", progress=again, **asked)  # type: ignore[arg-type]
    assert first.trained == ["ce-seed0", "kd-epoch-2-seed0"]
    assert again.trained == ["kd-epoch-2-seed0", "kd-epoch-9-seed0"]
    wider = sweep(settings, tmp_path / "out", seeds=[0, 1], progress=more)
    assert more.trained == [
        "kd-epoch-10-seed0",
        "ce-seed1",
        *[f"kd-{name}-seed1" for name in RIGHT],
    ]
    assert wider.rows[0].last.values[0] == whole.rows[0].last.values[0]


def test_the_base_line_stays_when_a_store_grows_or_fewer_snapshots_are_named(
    settings: dict[str, Any], bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "growing.zarr"
    rows = np.zeros((1, 300, 10), np.float32)
    grown = {**settings, "store": str(path), "epochs": 1}
    bound_store(path, DATA, rows, name="epoch-2")
    sweep(grown, tmp_path / "out", seeds=[0])
    bound_store(path, DATA, rows, name="epoch-1")
    seen = Students()
    found = sweep(grown, tmp_path / "out", seeds=[0], progress=seen)
    assert seen.trained == ["kd-epoch-1-seed0"]
    assert [row.snapshot for row in found.rows] == [None, "epoch-1", "epoch-2"]
    found = sweep(grown, tmp_path / "out", snapshots="epoch-1", seeds=[0], progress=seen)
    assert seen.trained == ["kd-epoch-1-seed0"]
    assert [row.snapshot for row in found.rows] == [None, "epoch-1"]


def test_teachers_are_names_patterns_and_ensembles_in_natural_order(store: Path) -> None:
    opened = open_store(store)
    assert chosen_teachers(opened, "all") == ["epoch-2", "epoch-9", "epoch-10"]
    assert chosen_teachers(opened, "epoch-1*,epoch-?") == ["epoch-2", "epoch-9", "epoch-10"]
    assert chosen_teachers(opened, "logits(epoch-9,epoch-10*2), epoch-9,epoch-9") == [
        "epoch-9",
        "logits(epoch-9,epoch-10*2)",
    ]


@pytest.mark.parametrize(
    ("changes", "asked", "error", "says"),
    [
        ({}, {"snapshots": "epoch-3"}, UnknownName, "'epoch-3': did you mean 'epoch-9'"),
        ({}, {"snapshots": "epoch-7*"}, UnknownName, r"like 'epoch-7\*': .*known: epoch-10, epo"),
        ({}, {"snapshots": "mean(epoch-2,x)"}, UnknownName, "'x'.* known: epoch-10, epoch-2"),
        ({}, {"snapshots": "epoch-2,epoch-9@3"}, InputError, "'epoch-9@3' is a stage of a sched"),
        ({}, {"methods": ["kd", "kdk"]}, UnknownName, "unknown method 'kdk': did you mean 'kd'"),
        ({"beta": 2.0}, {}, InputError, r"\(ce, kd\) has beta: drop --beta, or add dkd or dist"),
        (
            {"beta": -2.0},
            {"methods": ["kd", "dkd"]},
            InputError,
            "beta must be at least 0, not -2.0",
        ),
        ({"val": None}, {}, InputError, "give --val DATA, or --val split:0.1"),
        ({"store": None}, {}, InputError, "give --store STORE"),
        (
            {"temperature": 2.0},
            {"methods": ["kd", "nkd"], "snapshots": "epoch-2,mean(epoch-2,epoch-9)"},
            InputError,
            r"method 'nkd', as it is set here, does not take .* with logits\(…\)",
        ),
        ({"batch_size": 0}, {}, InputError, "batch_size must be at least 1"),
        ({"data": "digits?train=true"}, {}, MismatchError, "300 samples there, 1200 here"),
        (
            {},
            {"snapshots": "logits(epoch-2,epoch-9),logits(epoch-2, epoch-9)"},
            InputError,
            "would share the folder logits_epoch-2_epoch-9: sweep them apart",
        ),
    ],
)
def test_every_cell_is_checked_before_the_first_is_trained(
    settings: dict[str, Any],
    changes: dict[str, Any],
    asked: dict[str, Any],
    error: type[LogitstoreError],
    says: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=says):
        sweep({**settings, **changes}, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_found_before_the_first_is_trained(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    config = TrainConfig(
        **{**settings, "epochs": 1},
        method="kd",
        snapshot="epoch-9",
        seed=2,
        out=str(tmp_path / "out/kd-epoch-9-seed2"),
    )
    train(config)
    seen = Students()
    with pytest.raises(MismatchError, match="is a run with epochs = 1, asked for is 3"):
        sweep(settings, tmp_path / "out", progress=seen)
    assert seen.trained == []


def row(snapshot: str, values: tuple[float, ...]) -> Row:
    return Row(
        method="kd",
        snapshot=snapshot,
        teacher_top1=0.9,
        last=OverSeeds(values),
        best=OverSeeds(values),
        gain=None,
        kd_error=None,
        runs=(),
    )


def test_the_sentence_says_whether_an_earlier_teacher_did_better_and_whether_seeds_can_tell() -> (
    None
):
    names = ["e1", "e2", "mean(e1,e2)"]

    def said(*figures: tuple[float, ...]) -> str:
        rows = [row(name, values) for name, values in zip(names, figures, strict=True)]
        (finding,) = find_best(rows, names)
        assert finding.last == "e2"
        return finding.sentence

    assert "e2 teaches best (92.00 ± 1.41 %); it is the last one" in said(
        (0.8, 0.8), (0.91, 0.93), (0.7, 0.7)
    )
    clear = said((0.95, 0.96), (0.91, 0.925), (0.1, 0.1))
    assert "e1 teaches best (95.50 ± 0.71 %), +3.75 ± 0.35 % over the last one, e2; that" in clear
    assert "which 2 seeds cannot tell from chance" in said((0.95, 0.90), (0.91, 0.93), (0.1, 0.1))
    assert (
        "mean(e1,e2) teaches best (99.00 %), +9.00 % over the last one, e2, which 1 seed "
        in said((0.8,), (0.9,), (0.99,))
    )


def test_the_command_sweeps_prints_the_table_and_the_same_as_json(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "base.toml").write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    command = ["sweep", "--config", str(tmp_path / "base.toml"), "--epochs", "1", "--seeds", "0,1"]
    command += ["--snapshot", "epoch-?", "--methods", "kd,ttm", "--gamma", "0.5"]
    command += ["--out", str(tmp_path / "out")]
    shown, document = (CliRunner().invoke(app, [*command, *more]) for more in ([], ["--json"]))
    assert shown.exit_code == 0, shown.output
    table = shown.stdout.splitlines()
    assert [line.split()[:2] for line in table[2:7]] == [
        ["-", "ce"],
        ["epoch-2", "kd"],
        ["epoch-2", "ttm"],
        ["epoch-9", "kd"],
        ["epoch-9", "ttm"],
    ]
    assert table[7].startswith("kd: epoch-")
    found = json.loads(document.stdout)
    assert found == json.loads((tmp_path / "out/sweep.json").read_text())
    assert [len(entry["last"]["values"]) for entry in found["rows"]] == [2] * 5
    refused = CliRunner().invoke(app, [*command, "--snapshot", "epoch-5"])
    assert refused.exit_code == 2
    assert "unknown snapshot" in refused.stderr
