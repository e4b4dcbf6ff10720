"""The command line: exit codes, one clear message, JSON on request, refusals without a trace."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command
from typer.testing import Result

import logitstore
from logitstore.cli import app
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from tests.support.commands import refused, run

Build = Callable[..., Path]
ARCH = "mlp?hidden=16"
DATA = "digits?samples=0:100"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model(ARCH, classes=10, shape=(1, 8, 8))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def build(checkpoint: Path, out: Path, *more: str) -> Result:
    return run(
        *("build", "--teacher", checkpoint, "--arch", ARCH, "--data", DATA, "--out", out),
        *("--device", "cpu"),
        *more,
    )


def test_help_answers_everywhere() -> None:
    groups = {"cache", "specialists", "token"}
    names = [*(set(get_command(app).commands) - groups - {"demo"})]
    names += ["cache ls", "cache clear", "specialists plan"]
    names += ["token new", "token ls", "token revoke"]
    assert {"build", "train", "sweep", "report", "reproduce", "methods"} < set(names)
    for name in ([], *(name.split() for name in [*names, *groups, "demo"])):
        for flag in ("-h", "--help"):
            result = run(*name, flag)
            assert result.exit_code == 0
            assert "Usage:" in result.output
    for name in names:
        said = run(*name.split(), "-h").output.split("Options:")[0]
        assert f"logitstore {name}" in said.split("\n", 1)[1]


def test_a_store_is_built_listed_inspected_verified_and_exported(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.zarr"
    built = build(checkpoint, out, "--json")
    assert built.exit_code == 0, built.output
    (snapshot,) = json.loads(built.stdout)["snapshots"]
    assert snapshot["name"] == "teacher"

    (listed,) = json.loads(run("ls", tmp_path, "--json").stdout)
    assert (listed["snapshot"], listed["root"]) == ("teacher", snapshot["root"])

    shown = json.loads(run("inspect", out, "--json").stdout)
    assert shown["dataset"]["length"] == 100
    assert shown["snapshots"][0] == snapshot
    words = run("inspect", out).stdout
    for word in ("teacher.pth", "top-1", "float16", "bytes per row", snapshot["root"]):
        assert word in words

    whole = run("verify", out, "--teacher", checkpoint, "--arch", ARCH, "--data", DATA, "--json")
    assert whole.exit_code == 0, whole.output
    assert json.loads(whole.stdout)["rows_recomputed"] == 100

    for suffix in (".npy", ".npz", ".safetensors"):
        assert run("export", out, "--out", tmp_path / f"logits{suffix}").exit_code == 0
    exported = np.load(tmp_path / "logits.npy")
    store = logitstore.open_store(out)
    assert (exported == store.snapshots["teacher"].logits(np.arange(100))).all()
    assert (np.load(tmp_path / "logits.npz")["labels"] == store.labels).all()


def test_a_dry_run_checks_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    result = build(checkpoint, tmp_path / "s.zarr", "--dry-run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 100
    assert not (tmp_path / "s.zarr").exists()


def test_damage_ends_with_one_and_names_the_rows(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "s.zarr")
    victim = tmp_path / "s.zarr/snapshots/teacher/codes/c/0/0/0"
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    result = run("verify", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert "view 0, samples 0..99" in result.stdout
    assert "samples 0..99" in refused(
        "export", tmp_path / "s.zarr", "--out", tmp_path / "x.npy", code=1
    )
    assert not (tmp_path / "x.npy").exists()


def test_imported_logits_come_back_and_want_a_word_before_training(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 100, 10)).astype(np.float32)
    np.savez(tmp_path / "l.npz", a=logits, b=open_dataset(DATA).labels)
    out = tmp_path / "s.zarr"
    done = run(
        *("import", f"{tmp_path}/l.npz?key=a", "--labels", f"{tmp_path}/l.npz?key=b"),
        *("--out", out, "--snapshot", "mine", "--encoding", "float32"),
    )
    assert done.exit_code == 0, done.output
    snapshot = logitstore.open_store(out).snapshots["mine"]
    assert (snapshot.logits(np.arange(100), view=1) == logits[1]).all()
    assert snapshot.meta.fidelity.divergence[0].max == 0
    message = refused(
        *("train", "--data", DATA, "--student", ARCH, "--store", out, "--method", "kd"),
        *("--out", tmp_path / "run"),
    )
    assert not (tmp_path / "run").exists()
    assert "--allow-unbound" in message


def test_what_a_run_has_not_stands_in_its_json_alone(tmp_path: Path) -> None:
    command = ["train", "--data", DATA, "--student", ARCH, "--epochs", "1", "--out", tmp_path / "r"]
    lines = run(*command, "--device", "cpu").stdout.splitlines()
    document = json.loads(run(*command, "--device", "cpu", "--json").stdout)
    assert {"micro_batch", "views_seen", "context_memory", "best_epoch"} <= document.keys()
    present = [name for name, value in document.items() if value not in (None, [])]
    assert [line.split()[0] for line in lines] == present


def test_logits_from_elsewhere_join_a_store_with_the_same_labels(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.zarr"
    build(checkpoint, out)
    np.save(tmp_path / "l.npy", np.eye(10, dtype=np.float32)[open_dataset(DATA).labels])
    np.save(tmp_path / "y.npy", open_dataset(DATA).labels)
    done = run(
        *("import", tmp_path / "l.npy", "--labels", tmp_path / "y.npy"),
        *("--out", out, "--snapshot", "truth"),
    )
    # One-hot rows are probabilities: the labels themselves are no logits.
    assert done.exit_code == 2
    np.save(tmp_path / "l.npy", 5 * np.eye(10, dtype=np.float32)[open_dataset(DATA).labels])
    done = run(
        *("import", tmp_path / "l.npy", "--labels", tmp_path / "y.npy"),
        *("--out", out, "--snapshot", "truth"),
    )
    assert done.exit_code == 0, done.output
    store = logitstore.open_store(out)
    assert list(store.snapshots) == ["teacher", "truth"]
    assert store.snapshots["truth"].meta.top1 == 1.0
    assert run("verify", out).exit_code == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 3), 1 / 3), "these rows are probabilities"),
        (np.array([[1.0, np.nan, 2.0]] * 4), "sample 0 is NaN or infinite"),
        (np.array([[1.0, -1e300, 2.0]] * 4), "sample 0 is NaN or infinite"),
        (np.array([[1.0, np.finfo(np.float32).min, 2.0]] * 4), "those of masked classes at least"),
        (np.zeros(4), r"expected numbers (N, C)"),
        (np.zeros((5, 3)), "4 labels for the 5 samples"),
    ],
)
def test_impossible_imports_write_nothing(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "y.npy", np.arange(4) % 3)
    out = tmp_path / "s.zarr"
    said = refused(
        *("import", tmp_path / "a.npy", "--labels", tmp_path / "y.npy"),
        *("--out", out, "--snapshot", "x"),
    )
    assert message in said
    assert not out.exists()


def test_a_file_where_a_store_shall_be_is_named_and_left(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    np.save(tmp_path / "y.npy", np.arange(4) % 3)
    before = (tmp_path / "a.npy").read_bytes()
    for out in (tmp_path / "a.npy", tmp_path / "a.npy/s.zarr"):
        assert "a file is in the way" in refused(
            *("import", tmp_path / "a.npy", "--labels", tmp_path / "y.npy"),
            *("--out", out, "--snapshot", "x"),
        )
    assert (tmp_path / "a.npy").read_bytes() == before


def test_wrong_words_are_answered_with_right_ones(tiny_store: Build, tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "s.zarr", ("resnet56", "resnet20"))
    assert "did you mean 'resnet56'" in refused("inspect", store, "--snapshot", "resnet65")
    assert "say which with --snapshot" in refused("export", store, "--out", tmp_path / "x.npy")
    assert "no logit store is here" in refused("inspect", tmp_path / "nothing")
    assert "there is no such folder" in refused("ls", tmp_path / "nothing")
    assert "has root" in refused(
        "inspect", store, "--snapshot", "resnet20", "--expect-root", "0" * 64
    )
    assert "ends in .npy" in refused(
        "export", store, "--snapshot", "resnet20", "--out", tmp_path / "x.csv"
    )
    assert "is missing: give it" in refused("train", "--data", "digits")
    assert "did you mean 'kd'" in refused(
        *("train", "--data", "digits", "--student", "mlp", "--out", tmp_path / "r"),
        *("--method", "kdd"),
    )
    assert "expected every-epoch or whole numbers such as 1,5,60" in refused(
        *("train", "--data", "digits", "--student", "mlp", "--out", tmp_path / "r"),
        *("--snapshots", "1,x"),
    )
    assert not (tmp_path / "r").exists()


def test_wrong_usage_ends_with_two() -> None:
    for arguments in (["biuld"], ["build"], ["build", "--views", "many"], ["inspect"]):
        assert run(*arguments).exit_code == 2


def test_a_server_that_is_not_there_is_named() -> None:
    said = refused("inspect", "http://127.0.0.1:9/nothing")
    assert "127.0.0.1:9" in said


def test_a_missing_extra_names_its_command(tmp_path: Path) -> None:
    """A base installation: torch cannot be imported."""
    blocker = tmp_path / "torch"
    blocker.mkdir()
    (blocker / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "logitstore",
            "build",
            "--teacher",
            "x",
            "--data",
            "digits",
            "--out",
            str(tmp_path / "s"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "pip install 'logitstore[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_tokens_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.cli.options import read_token

    monkeypatch.setenv("LOGITSTORE_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    (tmp_path / "token").write_text("from-a-file\n")
    assert read_token(tmp_path / "token") == "from-a-file"
    (tmp_path / "token").write_text("two words")
    with pytest.raises(logitstore.LogitstoreError, match="exactly one token"):
        read_token(tmp_path / "token")


def test_a_full_disk_ends_an_export_with_three_and_leaves_no_file(
    tiny_store: Build, tmp_path: Path
) -> None:
    import resource

    store = tiny_store(tmp_path / "s.zarr", classes=40)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for suffix in (".npy", ".npz", ".safetensors"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            result = run("export", store, "--out", tmp_path / f"x{suffix}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert result.exit_code == 3, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_listing_one_named_place_fails_where_it_fails(tiny_store: Build, tmp_path: Path) -> None:
    tiny_store(tmp_path / "good.zarr")
    bad = tiny_store(tmp_path / "bad.zarr")
    (bad / "snapshots/teacher/zarr.json").write_text("{}")
    listed = json.loads(run("ls", tmp_path, "--json").stdout)
    assert ["problem" in row for row in listed] == [True, False]
    refused("ls", bad, code=1)
    refused("ls", "http://127.0.0.1:9/x")


def test_modules_in_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_data.py").write_text(
        "import numpy as np\ndef pairs(): return [(np.zeros((8, 8), np.uint8), i) for i in "
        "range(10)]\n"
    )
    console = Path(sys.executable).with_name("logitstore")
    done = subprocess.run(
        [
            console,
            "build",
            "--teacher",
            "nowhere.pth",
            "--data",
            "my_own_data:pairs",
            "--out",
            "s",
            "--arch",
            "mlp",
        ],
        capture_output=True,
        text=True,
    )
    assert "nowhere.pth: there is no such checkpoint" in done.stderr
    assert len(open_dataset("my_own_data:pairs")) == 10


def test_a_value_may_begin_with_a_dash_and_hold_an_h(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = "digits?train=true&samples=0:40"
    command = ("train", "--data", data, "--student", "mlp?hidden=4", "--epochs", "1")
    assert run(*command, "--out", "-fresh").exit_code == 0
    assert (tmp_path / "-fresh/result.json").is_file()
    assert "unknown option '-epochs'" in refused("train", "-epochs", "1")
    assert "--out needs a value" in refused("train", "--out", "--method", "kd")


def test_what_is_no_number_or_no_place_is_refused_and_not_a_traceback(tmp_path: Path) -> None:
    command = ("train", "--data", "digits", "--student", "mlp", "--out", tmp_path / "r")
    assert "whole numbers such as 1,5,60" in refused(*command, "--milestones", "²")
    assert "seed must be" in refused(*command, "--seed", str(2**70))
    (tmp_path / "c.toml").write_text('method = ["kd"]\n')
    assert "expected a method's name" in refused(*command, "--config", tmp_path / "c.toml")
    assert run("evaluate", tmp_path, "--data", "digits", "--batch-size", "0").exit_code == 2
    (tmp_path / "file").write_text("in the way")
    inside = ("train", "--data", "digits", "--student", "mlp", "--out", tmp_path / "file/run")
    assert "in the way" in refused(*inside, "--epochs", "1")
