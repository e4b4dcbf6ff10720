"""The wheel holds one import name, which neither hides people's own modules nor is hidden by them.

``trainer`` and ``api`` are what many people call a script or a package of their own: what is
installed is used here from folders that have both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BUILD = """
import sys
from setuptools import build_meta

kind, folder = sys.argv[1:]
getattr(build_meta, f"build_{kind}")(folder)
"""
SCRIPT = """
from torch.utils.data import DataLoader
from logitstore import LogitDataset, losses, open_store, with_logits
import trainer

snapshot = open_store("../s.zarr").snapshots["teacher"]
loader = DataLoader(LogitDataset("digits?samples=0:40", snapshot), 40)
if __name__ == "__main__":
    for batch in with_logits(loader, snapshot):
        loss = losses.kd(batch.teacher, batch.teacher, temperature=4)
        print(trainer.__file__, loss.sum().item())
"""
SERVICE = """
import sys
import api
from logitstore.api import app

print(api.__file__, app.__file__, "torch" in sys.modules)
"""
NETS = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
PICTURES = """
import numpy as np

def few():
    return [(np.full((8, 8), number, np.uint8), number) for number in range(10)]
"""


def finished(command: list[str | Path], folder: Path) -> str:
    """What a command prints that knows nothing of this repository; it must succeed."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=plain, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the source distribution of a copy of this repository."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "out"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    caches = shutil.ignore_patterns("__pycache__")
    for name in ("logitstore", "trainer", "api"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=caches)
    finished([sys.executable, "-c", BUILD, "sdist", out], source)
    (packed,) = out.iterdir()
    shutil.unpack_archive(packed, out, filter="data")
    finished([sys.executable, "-c", BUILD, "wheel", out], out / packed.name.removesuffix(".tar.gz"))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the packages of this one but for the way to this tree."""
    folder = tmp_path_factory.mktemp("environment")
    finished([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin/python"
    install = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    finished([sys.executable, "-m", "pip", "--python", python, *install], folder)
    # A path in a .pth file is searched last, and the .pth files there are not read: an editable
    # install of this tree is not found.
    site = finished(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder
    )
    (Path(site.strip()) / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory, bound_store: Callable[..., Path]) -> Path:
    """A person's folders: ``scripts`` has trainer.py and api.py, ``packages`` trainer/ and api/."""
    top = tmp_path_factory.mktemp("mine")
    for path, text in {
        "scripts/trainer.py": SCRIPT,
        "scripts/api.py": SERVICE,
        "packages/trainer/__init__.py": "",
        "packages/trainer/nets.py": NETS,
        "packages/api/__init__.py": "",
        "packages/api/pictures.py": PICTURES,
    }.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    bound_store(top / "s.zarr", "digits?samples=0:40", np.zeros((1, 40, 10), np.float32))
    return top


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    described = {name for name in held if name.split("/")[0].endswith(".dist-info")}
    folders = [ROOT / "logitstore", ROOT / "logitstore/trainer", ROOT / "logitstore/api"]
    ours = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held - described == ours
    assert {
        "logitstore/FORMAT.md",
        "logitstore/py.typed",
        "logitstore/api/HTTP.md",
        "logitstore/trainer/METHODS.md",
    } < held


def test_scripts_called_trainer_and_api_import_ours_and_are_themselves(
    python: Path, mine: Path
) -> None:
    scripts = mine / "scripts"
    file, loss = finished([python, "trainer.py"], scripts).split()
    assert (file, float(loss)) == (f"{scripts}/trainer.py", 0.0)
    file, ours, torch = finished([python, "api.py"], scripts).split()[-3:]
    assert (file, torch) == (f"{scripts}/api.py", "False")
    assert Path(ours).is_relative_to(python.parents[1])


TRAIN = ["train", "--data", "digits?samples=0:40", "--method", "ce", "--epochs", "1"]


def test_torchrun_beside_a_file_called_trainer_runs_ours(python: Path, mine: Path) -> None:
    """Each rank is a ``python -m logitstore train``."""
    launch = [python, "-m", "torch.distributed.run", "--nproc-per-node=1", "-m", "logitstore"]
    out = mine / "ranks"
    finished([*launch, *TRAIN, "--student", "mlp?hidden=8", "--out", out], mine / "scripts")
    assert (out / "model.safetensors").is_file()


def test_factories_of_packages_called_trainer_and_api_are_found(python: Path, mine: Path) -> None:
    out = mine / "factories"
    arguments = [*TRAIN, "--student", "trainer.nets:make", "--val", "api.pictures:few"]
    finished([python, "-m", "logitstore", *arguments, "--out", out], mine / "packages")
    assert (out / "model.safetensors").is_file()
