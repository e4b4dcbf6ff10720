"""A run's folder, or a checkpoint with files beside it, is data: nothing that it names is run.

Only commands are used here.  A stranger's ``net.py`` leaves a mark if any of its code runs.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from logitstore.cli import app

TRAIN, TEST = "digits?train=true&samples=0:120", "digits?train=false&samples=0:60"
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from torch import nn
def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
class Data:
    classes, targets = [str(i) for i in range(10)], [i % 10 for i in range(60)]
    def __len__(self): return 60
    def __getitem__(self, i):
        import numpy
        return numpy.full((8, 8), 4 * i, numpy.uint8), i % 10
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and a store that its weights built."""
    folder = tmp_path_factory.mktemp("honest")
    done(
        *("train", "--data", TRAIN, "--test", TEST, "--student", "mlp?hidden=8", "--epochs", 1),
        *("--omit-class", 3, "--snapshots", "every-epoch", "--out", folder / "run"),
        *("--device", "cpu"),
    )
    done(
        *("build", "--teacher", folder / "run/model.safetensors", "--data", TEST),
        *("--out", folder / "store.zarr", "--device", "cpu"),
    )
    return folder


@pytest.fixture
def stranger(honest: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy with code beside it, in the current folder; ``tmp_path/mark`` is the code's mark."""
    shutil.copytree(honest, tmp_path / "got", symlinks=True)
    got = tmp_path / "got"
    code = CODE.format(mark=str(tmp_path / "mark"))
    for name in ("net.py", "strange_net.py", "strange_package/net.py"):
        (got / name).parent.mkdir(exist_ok=True)
        (got / name).write_text(code)
    before, path = Path.cwd(), list(sys.path)
    os.chdir(got)
    yield got
    os.chdir(before)
    sys.path[:] = path
    for name in [name for name in sys.modules if "strange" in name or "_logitstore_net" in name]:
        del sys.modules[name]


def rewrite(got: Path, key: str, value: str) -> None:
    """Set a line of the run's config.toml."""
    file = got / "run/config.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{key} =")]
    file.write_text("\n".join([lines[0], f'{key} = "{value}"', *lines[1:]]) + "\n")


COMMANDS = {
    "build": "build --teacher run/model.safetensors --data {test} --out new.zarr",
    "build of a snapshot": (
        "build --teacher run/snapshots/epoch-0001.safetensors --data {test} --out new.zarr"
    ),
    "build of the run": "build --teacher run --data {test} --out new.zarr",
    "dry run": "build --teacher run/model.safetensors --data {test} --out new.zarr --dry-run",
    "plan": "plan --teacher run/model.safetensors --data {test}",
    "evaluate": "evaluate run --data {test}",
    "evaluate weights": "evaluate run/model.safetensors --data {test}",
    "probe": "probe run --data {train} --test {test}",
    "correct-bias": "correct-bias run --data {test}",
    "verify": "verify store.zarr --teacher run/model.safetensors --data {test}",
    "report": "report run",
}
NAMES = (
    "{got}/net.py:make",
    "net.py:make",
    "strange_net:make",
    "strange_package.net:make",
    "torchvision:resnet18?weights=DEFAULT",
    "timm:resnet18?pretrained=true",
    "timm:resnet18?checkpoint_path={got}/run/model.safetensors",
    "mlp?hidden=9999999999",
)


def command(name: str) -> list[str]:
    return COMMANDS[name].format(train=TRAIN, test=TEST).split()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_network_out_of_a_file_is_not_run(name: str, stranger: Path) -> None:
    for arch in NAMES:
        rewrite(stranger, "student", arch.format(got=stranger))
        result = run(*command(name))
        assert result.exit_code == 2, (arch, result.output)
        assert "--trust-run" in result.stderr, (arch, result.stderr)
        assert "config.toml" in result.stderr
        assert not (stranger.parent / "mark").exists(), arch
        assert not (stranger / "new.zarr").exists()
        assert str(stranger) not in sys.path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_network_out_of_a_file_that_is_trusted_is_run(name: str, stranger: Path) -> None:
    rewrite(stranger, "student", f"{stranger}/net.py:make")
    run(*command(name), "--trust-run")
    assert (stranger.parent / "mark").exists()


def test_a_network_that_the_user_types_is_run(stranger: Path) -> None:
    rewrite(stranger, "student", "nothing:nobody")
    result = run("evaluate", "run", "--data", TEST, "--student", f"{stranger}/net.py:make")
    assert (stranger.parent / "mark").exists(), result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_of_built_in_names_needs_no_trust(name: str, stranger: Path) -> None:
    result = run(*command(name))
    assert result.exit_code == 0, result.output
    assert str(stranger) not in sys.path


@pytest.mark.parametrize("key", ["test", "val"])
@pytest.mark.parametrize(
    "data",
    [
        "{got}/net.py:Data",
        "strange_net:Data",
        "torchvision:LSUN?root={got}",
        "torchvision:DatasetFolder?root={got}",
        "torchvision:FakeData?transform=x",
    ],
)
def test_data_out_of_a_file_run_no_code(key: str, data: str, stranger: Path) -> None:
    file = stranger / "run/config.toml"
    kept = [line for line in file.read_text().splitlines() if not line.startswith(("test", "val"))]
    file.write_text("\n".join([*kept, f'{key} = "{data.format(got=stranger)}"']) + "\n")
    result = run("report", "run")
    assert result.exit_code == 2, result.output
    assert "--trust-run" in result.stderr
    assert "--data" in result.stderr
    assert not (stranger.parent / "mark").exists()


def test_samples_held_out_of_data_that_a_file_names_run_no_code(stranger: Path) -> None:
    rewrite(stranger, "data", f"{stranger}/net.py:Data")
    rewrite(stranger, "val", "split:0.1")
    for arguments in (("--data", "split:0.1"), ("--data", TEST, "--val", "split:0.1")):
        result = run("evaluate", "run", *arguments)
        assert result.exit_code == 2, result.output
        assert "--trust-run" in result.stderr
        assert not (stranger.parent / "mark").exists()
    run("evaluate", "run", "--data", "split:0.1", "--trust-run")
    assert (stranger.parent / "mark").exists()


def test_a_report_of_a_run_without_its_inputs_runs_no_code_of_it(stranger: Path) -> None:
    """Beside a run that is inside another one: whose file names the data is not mixed up."""
    (stranger / "run/inputs.json").unlink()
    rewrite(stranger, "test", f"{stranger}/net.py:Data")
    result = run("report", "run")
    assert result.exit_code in (1, 2), result.output
    assert not (stranger.parent / "mark").exists()


def test_a_download_that_a_file_asks_for_is_not_done(stranger: Path) -> None:
    rewrite(stranger, "test", "torchvision:MNIST?root=.&download=true")
    result = run("report", "run")
    assert result.exit_code == 2, result.output
    assert not (stranger / "MNIST").exists()


@settings(max_examples=60, deadline=None)
@given(
    st.text("abcxyz._-/", max_size=12),
    st.sampled_from([":", "::", ":make", ".py:make", ".net:make", "?a=b:make"]),
)
def test_no_name_with_a_colon_passes(
    honest: Path, tmp_path_factory: pytest.TempPathFactory, place: str, end: str
) -> None:
    got = tmp_path_factory.mktemp("got")
    shutil.copytree(honest / "run", got / "run")
    rewrite(got, "student", place + end)
    result = run("evaluate", got / "run", "--data", TEST)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
