"""The same rows in another encoding: what they lose, what they stay bound to, what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from logitstore.derive.transcode import transcode
from logitstore.format.choice import EncodingRequest
from logitstore.format.encodings.table import encoding
from logitstore.format.fidelity import kl_divergence
from logitstore.precompute.networks.factory import build_model
from logitstore.reading.opening import open_store
from logitstore.storage import open_storage
from tests.support.commands import refused, run
from tests.support.stores import tree

Build = Callable[..., Path]
ARCH, DATA = "mlp?hidden=16", "digits?samples=0:100"


def test_a_transcoded_row_is_the_encoding_of_the_decoded_row(
    tmp_path: Path, tiny_store: Build
) -> None:
    source = open_store(tiny_store(tmp_path / "a.zarr", classes=40, views=2))
    old = source.snapshots["teacher"]
    transcode(
        source, old, str(tmp_path / "b.zarr"), EncodingRequest(text="uint8:128"), name="small"
    )
    made = open_store(tmp_path / "b.zarr")
    new = made.snapshots["small"]
    entry = encoding("uint8", 40, {"levels": 128})
    for view in (0, 1):
        logits = old.logits(np.arange(100), view)
        expected = entry.encode(logits, source.labels)
        found = new.rows(np.arange(100), view).arrays
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in expected.items()
        }
    losses = [
        kl_divergence(old.logits(np.arange(100), v), new.logits(np.arange(100), v), temperature=4)
        for v in (0, 1)
    ]
    assert new.meta.fidelity.divergence[1].mean == pytest.approx(np.mean(losses), rel=0.01)
    assert made.meta == source.meta
    assert (made.labels == source.labels).all()
    assert new.meta.transcoded is not None
    assert new.meta.transcoded.root == old.root
    assert new.meta.transcoded.fidelity == old.meta.fidelity
    assert run("verify", tmp_path / "b.zarr").exit_code == 0


def test_a_transcoded_store_is_still_bound_to_teacher_and_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(ARCH, classes=10, shape=(1, 8, 8))
    torch.save(model.state_dict(), tmp_path / "t.pth")
    teacher = ("--teacher", tmp_path / "t.pth", "--arch", ARCH, "--data", DATA, "--device", "cpu")
    out, small = tmp_path / "a.zarr", tmp_path / "b.zarr"
    assert run("build", *teacher, "--out", out).exit_code == 0
    assert run("transcode", out, "--encoding", "uint8", "--out", small).exit_code == 0
    checked = run("verify", small, *teacher, "--sample", 100)
    assert checked.exit_code == 0, checked.output
    assert "100 rows recomputed" in checked.output
    done = run(
        *("train", "--store", small, "--method", "kd", "--student", ARCH, "--epochs", 1),
        *("--data", DATA, "--out", tmp_path / "run", "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    other = run(
        *("train", "--store", small, "--method", "kd", "--student", ARCH, "--epochs", 1),
        *("--data", "digits?samples=100:200", "--out", tmp_path / "x", "--device", "cpu"),
    )
    assert other.exit_code == 2


def test_an_interrupted_transcoding_ends_in_the_same_bytes(
    tmp_path: Path, tiny_store: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_store(tiny_store(tmp_path / "a.zarr", classes=40, samples=100))
    old = source.snapshots["teacher"]
    # Shards of 2 MiB of codes hold all rows: smaller ones make it stop in the middle.
    monkeypatch.setattr("logitstore.writing.plan.shard_rows", lambda bytes_per_row: 32)
    transcode(source, old, str(tmp_path / "whole.zarr"), EncodingRequest(text="uint8"))
    calls = iter(range(100))

    class Stop(Exception):
        pass

    class Stopping:
        def start(self, *_: object) -> None: ...
        def message(self, *_: object) -> None: ...
        def advance(self, *_: object) -> None:
            if next(calls) == 1:
                raise Stop

    with pytest.raises(Stop):
        transcode(
            source,
            old,
            str(tmp_path / "b.zarr"),
            EncodingRequest(text="uint8"),
            progress=Stopping(),
        )
    assert open_storage(tmp_path / "b.zarr").size("snapshots/teacher/commit.json") is None
    transcode(source, old, str(tmp_path / "b.zarr"), EncodingRequest(text="uint8"))
    assert tree(tmp_path / "b.zarr") == tree(tmp_path / "whole.zarr")


def test_what_cannot_be_transcoded_is_refused_and_leaves_nothing(
    tmp_path: Path, tiny_store: Build
) -> None:
    path = tiny_store(tmp_path / "a.zarr", classes=40)
    out = tmp_path / "b.zarr"
    assert "kept as float16 already" in refused(
        "transcode", path, "--encoding", "float16", "--out", out
    )
    assert "did you mean 'teacher'" in refused(
        "transcode", path, "--snapshot", "teachr", "--out", out
    )
    text = refused("transcode", path, "--encoding", "uint8:16", "--max-kl", "1e-6", "--out", out)
    assert "the smallest within it is" in text
    assert not out.exists()
    assert run("transcode", path, "--encoding", "uint8", "--out", out).exit_code == 0
    before = tree(out)
    assert "was itself transcoded" in refused(
        "transcode", out, "--encoding", "float32", "--out", tmp_path / "c.zarr"
    )
    assert "was built differently" in refused(
        "transcode", path, "--encoding", "uint8:64", "--out", out
    )
    assert tree(out) == before
    assert "use another --name" in refused("transcode", path, "--encoding", "uint8", "--out", path)


def test_an_encoding_of_a_later_version_is_named_with_that_version(
    tmp_path: Path, tiny_store: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store as another version would write it: its encoding is renamed while it is written."""
    from logitstore.format.encodings import table as encodings

    source = open_store(tiny_store(tmp_path / "a.zarr", classes=40))
    later = type("Uint4", (encodings.Uint8,), {"name": "uint4"})
    monkeypatch.setitem(encodings.ENCODINGS, "uint4", later)
    monkeypatch.setattr("logitstore.writing.plan.__version__", "9.9.9")
    out = tmp_path / "b.zarr"
    transcode(source, source.snapshots["teacher"], str(out), EncodingRequest(text="uint4"))
    monkeypatch.delitem(encodings.ENCODINGS, "uint4")
    text = refused("inspect", out)
    assert "unknown encoding 'uint4'" in text
    assert "written by logitstore 9.9.9" in text
    assert "float16" in text


def test_the_same_command_into_the_same_store_finds_its_work_done(
    tmp_path: Path, tiny_store: Build
) -> None:
    path = tiny_store(tmp_path / "a.zarr", classes=40)
    command = ("transcode", path, "--out", path, "--name", "small", "--encoding", "uint8")
    assert run(*command).exit_code == 0
    before = tree(path)
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert tree(path) == before
