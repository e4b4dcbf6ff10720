"""What METHODS.md says of adding a method: three files of code, and all the rest follows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[3]


def test_the_blocks_of_the_document_make_a_method_with_its_options(
    bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n# (trainer/[\w/]+\.py)\n(.*?)```", _document(), re.DOTALL)
    assert [name for name, _ in blocks] == [
        "trainer/losses.py",
        "trainer/methods/distillation.py",
        "trainer/methods/table.py",
    ]
    for folder in ("logitstore", "trainer", "api"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    for name, code in blocks:
        with (tmp_path / name).open("a") as file:
            file.write(f"\n\n{code}")
    data = "digits?train=true&samples=0:100"
    logits = np.random.default_rng(0).standard_normal((1, 100, 10)).astype(np.float32)
    store = bound_store(tmp_path / "s.zarr", data, logits)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "logitstore", "train", "--data", data, "--student", "mlp"),
            *("--store", str(store), "--method", "both-ways", "--reverse", "0.3"),
            *("--epochs", "1", "--out", str(tmp_path / "run")),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (config["method"], config["reverse"], config["temperature"]) == ("both-ways", 0.3, 4.0)


def _document() -> str:
    return (ROOT / "trainer/METHODS.md").read_text()
