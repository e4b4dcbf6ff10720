"""The ways to read rows differ in what they cost and never in a byte; the user hears the cost."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from logitstore.cache import prepare
from logitstore.cache.cache import Cache
from logitstore.cache.mapped import MappedCopy
from logitstore.cache.modes import READ_MODES
from logitstore.cache.prepare import prepare_reading
from logitstore.cli import app
from logitstore.errors import InputError, NoCache, UnknownName
from logitstore.format.encodings.table import ENCODINGS
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.networks.factory import build_model
from logitstore.progress import Lines, Silent
from logitstore.reading.continued import Continued
from logitstore.reading.opening import open_store
from logitstore.trainer import LogitDataset, TrainConfig, train, with_logits

SAMPLES, CLASSES = 100, 40
FORMS = [f"{name}:10" if name == "topk" else name for name in ENCODINGS]


@pytest.fixture(scope="module")
def stores(
    tiny_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A store in each encoding, by its spelling; two views."""
    folder = tmp_path_factory.mktemp("reading")
    return {
        form: tiny_store(
            folder / f"{form.replace(':', '')}.zarr",
            classes=CLASSES,
            views=2,
            form=form,
            row_digests=form != "float32",
        )
        for form in FORMS
    }


@pytest.fixture
def path(stores: dict[str, Path]) -> Path:
    return stores["float16"]


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies go to the disk, however small."""
    monkeypatch.setattr(prepare, "SMALL_BYTES", 0)


def batch(snapshot: Any, view: int = 1) -> dict[str, bytes]:
    wanted = np.random.default_rng(0).integers(0, SAMPLES, 200)
    return {name: a.tobytes() for name, a in snapshot.rows(wanted, view).arrays.items()}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_the_same_bytes_in_every_mode_local_and_served(
    stores: dict[str, Path],
    serve: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    on_disk: bool,
) -> None:
    if on_disk:
        monkeypatch.setattr(prepare, "SMALL_BYTES", 0)
    server = served(serve, stores["float16"].parent)
    name, cache = stores[form].stem, Cache(tmp_path)
    expected = batch(open_store(stores[form]).snapshots["teacher"])
    tried = [(stores[form], read) for read in READ_MODES if read != "stream"]
    tried += [(f"{server.url}/{name}", read) for read in READ_MODES]
    for location, read in tried:
        snapshot = open_store(location).snapshots["teacher"]
        found = prepare_reading(snapshot, read, cache)
        assert found.read == ("materialise" if read == "auto" else read)
        assert [copy.path is not None for copy in found.copies] == (
            [on_disk] if found.read == "materialise" else []
        )
        assert batch(found) == expected, (location, read)
        assert batch(snapshot) == expected, "the snapshot itself reads as it did"


_servers: dict[Path, Any] = {}


def served(serve: Callable[..., Any], folder: Path) -> Any:
    """One server for all tests of this file."""
    if folder not in _servers:
        _servers[folder] = serve(folder)
    return _servers[folder]


def test_a_served_snapshot_is_decoded_here_without_asking_for_rows(
    path: Path, serve: Callable[..., Any], tmp_path: Path, nothing_is_small: None
) -> None:
    server = serve(path)
    snapshot = open_store(f"{server.url}/float16").snapshots["teacher"]
    reader = prepare_reading(snapshot, "materialise", Cache(tmp_path))
    server.kill()
    assert batch(reader) == batch(open_store(path).snapshots["teacher"])
    # The same root is the same copy, wherever its bytes came from.
    local = open_store(path).snapshots["teacher"]
    assert prepare_reading(local, "auto", Cache(tmp_path)).note.startswith(
        f"rows: 2 x 100 x 40 found decoded in {tmp_path} (17.2 KiB), "
    )


def test_the_cost_is_told_while_it_is_paid_and_in_one_line_afterwards(
    path: Path, tmp_path: Path, nothing_is_small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heard(Silent):
        total, done = 0, 0

        def start(self, task: str, total: int, unit: str) -> None:
            assert (task, unit) == ("decoding teacher", "rows")
            self.total += total

        def advance(self, count: int) -> None:
            self.done += count

    heard, snapshot = Heard(), open_store(path).snapshots["teacher"]
    monkeypatch.setenv("HOME", str(tmp_path))
    found = prepare_reading(snapshot, "auto", Cache(tmp_path / "copies"), heard)
    assert heard.total == heard.done == 200
    seconds = f"{found.copies[0].seconds:.1f} s"
    assert found.note == f"rows: 2 x 100 x 40 decoded once into ~/copies (17.2 KiB) in {seconds}"
    assert found.copies[0].bytes == 2 * SAMPLES * (2 * CLASSES + 8) == 17_600
    again = prepare_reading(snapshot, "materialise", Cache(tmp_path / "copies"))
    assert again.copies[0].path == found.copies[0].path
    assert again.note.startswith("rows: 2 x 100 x 40 found decoded in ~/copies (17.2 KiB), ")


def test_small_snapshots_are_decoded_into_memory(path: Path, tmp_path: Path) -> None:
    snapshot = open_store(path).snapshots["teacher"]
    found = prepare_reading(snapshot, "auto", Cache(tmp_path / "c"), Lines(sys.stderr))
    assert found.note.startswith("rows: 2 x 100 x 40 decoded into memory (17.2 KiB) in ")
    assert not (tmp_path / "c").exists()


def test_auto_falls_back_with_the_reason_and_materialise_refuses(
    path: Path, serve: Callable[..., Any], tmp_path: Path, nothing_is_small: None
) -> None:
    server = served(serve, path.parent)
    for location, read in ((path, "direct"), (f"{server.url}/float16", "stream")):
        snapshot = open_store(location).snapshots["teacher"]
        found = prepare_reading(snapshot, "auto", Cache(tmp_path, 1000))
        assert found.read == read
        assert "takes 17.2 KiB, the cache may hold 1000 B" in found.note
        assert batch(found) == batch(open_store(path).snapshots["teacher"])
        with pytest.raises(NoCache, match="LOGITSTORE_CACHE_BYTES"):
            prepare_reading(snapshot, "materialise", Cache(tmp_path, 1000))
    huge = open_store(path).snapshots["teacher"]
    (tmp_path / "file").touch()
    assert prepare_reading(huge, "auto", Cache(tmp_path / "file")).read == "direct"


def test_without_digests_auto_streams_only_what_it_cannot_keep_and_what_may_be_unproven(
    stores: dict[str, Path],
    serve: Callable[..., Any],
    tmp_path: Path,
    nothing_is_small: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = stores["float32"]
    snapshot = open_store(f"{served(serve, path.parent).url}/float32").snapshots["teacher"]
    expected = batch(open_store(path).snapshots["teacher"])
    for kept, only_proven, read in (
        (1 << 20, False, "direct"),
        (1 << 20, True, "direct"),
        (1000, False, "stream"),
        (1000, True, "direct"),
    ):
        monkeypatch.setattr(prepare, "DECODED_CACHE_BYTES", kept)
        found = prepare_reading(snapshot, "auto", Cache(tmp_path, 1000), only_proven=only_proven)
        assert (found.read, found.proven) == (read, read == "direct")
        assert ("not proven: 'teacher' without row digests" in found.note) == (read == "stream")
        assert batch(found) == expected
    with pytest.raises(InputError, match="--read materialise or direct"):
        prepare_reading(snapshot, "stream", only_proven=True)
    assert not prepare_reading(snapshot, "stream").proven


def test_a_run_that_was_once_taught_unproven_rows_stays_not_proven(
    bound: Path, serve: Callable[..., Any], tmp_path: Path
) -> None:
    class Stop(Lines):
        def message(self, text: str) -> None:
            if text.startswith("epoch 1/2"):
                raise KeyboardInterrupt

    url = f"{served(serve, bound.parent).url}/b"
    streamed = settings(bound, tmp_path / "run", store=url, read="stream")
    with pytest.raises(KeyboardInterrupt):
        train(streamed, progress=Stop())
    assert train(replace(streamed, read="direct")).teacher_rows == "not proven"
    again = replace(streamed, read="direct", out=str(tmp_path / "again"))
    assert train(again).teacher_rows == "proven"


def test_what_cannot_be_is_refused(path: Path) -> None:
    snapshot = open_store(path).snapshots["teacher"]
    with pytest.raises(InputError, match=r"float16\.zarr is a path: use --read materialise"):
        prepare_reading(snapshot, "stream")
    with pytest.raises(UnknownName, match="did you mean 'direct'"):
        prepare_reading(snapshot, "dirrect")


@pytest.mark.parametrize("read", ["auto", "direct"])
def test_indices_are_checked_in_every_mode(path: Path, read: str) -> None:
    reader = prepare_reading(open_store(path).snapshots["teacher"], read)
    for wrong, said in (([0, 100], "sample 100"), ([-1, 5], "sample -1"), ([0.5], "integers")):
        with pytest.raises(InputError, match=said):
            reader.rows(wrong)
    with pytest.raises(InputError, match="sample 9223372036854775808 is outside"):
        reader.rows(np.array([2**63], np.uint64))
    with pytest.raises(InputError, match="view 2 is outside"):
        reader.rows([0], view=2)
    assert len(reader.rows([])) == 0
    small = np.array([3, 1], np.uint8)
    assert (reader.logits(small) == reader.logits([3, 1])).all()
    assert (small == [3, 1]).all()


def test_continued_snapshots_are_all_materialised_or_none(
    tmp_path: Path, nothing_is_small: None
) -> None:
    torch.save(
        build_model("mlp?hidden=4", classes=10, shape=(1, 8, 8)).state_dict(), tmp_path / "t.pt"
    )
    (tmp_path / "views.json").write_text(json.dumps([{"name": "RandomHorizontalFlip"}]))
    for first, views, name in ((0, 1, "a"), (1, 2, "b")):
        build(
            BuildConfig(
                teachers=[str(tmp_path / "t.pt")],
                arch=["mlp?hidden=4"],
                data="digits?samples=0:60",
                out=str(tmp_path / "s.zarr"),
                snapshots=[name],
                view_spec=str(tmp_path / "views.json"),
                views=views,
                first_view=first,
                device="cpu",
            )
        )
    snapshots = open_store(tmp_path / "s.zarr").snapshots
    both = Continued([snapshots["a"], snapshots["b"]])

    def views(reader: Any) -> list[bytes]:
        return [reader.rows([59, 0, 59], view).arrays["codes"].tobytes() for view in range(3)]

    direct = views(both)
    row = snapshots["a"].encoding.bytes_per_row
    for most, read in ((2.5 * 60 * row, "direct"), (6 * 60 * row, "materialise")):
        found = prepare_reading(both, "auto", Cache(tmp_path / "c", int(most)))
        assert found.read == read
        assert [type(copy) for copy in found.copies] == [MappedCopy] * 2 * (read == "materialise")
        assert views(found) == direct
    assert found.note.startswith("rows: 3 x 60 x 10 decoded once into ")


TRAIN = "digits?samples=0:200"


@pytest.fixture(scope="module")
def bound(bound_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    logits = np.random.default_rng(0).normal(size=(2, 200, 10)).astype(np.float32)
    return bound_store(tmp_path_factory.mktemp("bound") / "b.zarr", TRAIN, logits)


def settings(bound: Path, out: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": TRAIN,
        "student": "mlp?hidden=8",
        "store": str(bound),
        "method": "kd",
        "epochs": 2,
        "device": "cpu",
        "out": str(out),
        **changes,
    }
    return TrainConfig(**values)


def test_a_student_is_the_same_bit_for_bit_in_every_mode(
    bound: Path, serve: Callable[..., Any], tmp_path: Path, nothing_is_small: None
) -> None:
    server = served(serve, bound.parent)
    weights = set()
    for number, (location, read) in enumerate(
        [(bound, "direct"), (bound, "materialise"), (f"{server.url}/b", "stream")]
    ):
        config = settings(
            Path(location) if location is bound else bound,
            tmp_path / str(number),
            store=str(location),
            read=read,
            cache=str(tmp_path / "c"),
        )
        run = train(config).run
        weights.add((run / "model.safetensors").read_bytes())
    assert len(weights) == 1
    assert [entry.snapshot for entry in Cache(tmp_path / "c").entries()] == ["teacher"]


def test_a_run_may_go_on_in_another_mode(bound: Path, tmp_path: Path) -> None:
    class Stop(Lines):
        def message(self, text: str) -> None:
            if text.startswith("epoch 1/2"):
                raise KeyboardInterrupt

    first = settings(bound, tmp_path / "run", read="direct")
    with pytest.raises(KeyboardInterrupt):
        train(first, progress=Stop())
    went_on = train(replace(first, read="materialise", cache=str(tmp_path / "c"))).run
    whole = train(replace(first, out=str(tmp_path / "whole"))).run
    assert (went_on / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()


def test_a_run_tells_how_its_rows_are_read(bound: Path, tmp_path: Path) -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            self.lines = list[str]()

        def message(self, text: str) -> None:
            self.lines.append(text)

    heard = Heard()
    train(settings(bound, tmp_path / "run"), progress=heard)
    assert any(line.startswith("rows: 2 x 200 x 10 decoded into memory") for line in heard.lines)


def test_settings_that_contradict_are_refused_before_any_work(bound: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.zarr is a path: use --read materialise or direct"):
        settings(bound, tmp_path, read="stream")
    with pytest.raises(InputError, match="read = 'fast'"):
        settings(bound, tmp_path, read="fast")
    for name, value in (("read", "direct"), ("cache", "c")):
        with pytest.raises(InputError, match=f"--{name} without a store"):
            settings(bound, tmp_path, store=None, method="ce", **{name: value})


def test_own_loops_get_the_same_batches_in_every_mode(
    bound: Path, tmp_path: Path, nothing_is_small: None, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = open_store(bound).snapshots["teacher"]
    dataset = LogitDataset(TRAIN, snapshot)
    caplog.set_level("INFO")

    def epoch(read: Any) -> list[bytes]:
        loader = with_logits(DataLoader(dataset, 64), snapshot, read=read, cache=Cache(tmp_path))
        loader.set_epoch(1)
        return [batch.teacher.numpy().tobytes() for batch in loader]

    assert epoch("direct") == epoch("auto") == epoch("materialise")
    reader = prepare_reading(snapshot, "direct")
    prepared = with_logits(DataLoader(LogitDataset(TRAIN, reader), 64), reader)
    prepared.set_epoch(1)
    assert [batch.teacher.numpy().tobytes() for batch in prepared] == epoch("direct")
    assert f"decoded once into {tmp_path}" in caplog.text
    with pytest.raises(InputError, match="is a path"):
        epoch("stream")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_line_lists_and_clears_copies(
    path: Path, tmp_path: Path, nothing_is_small: None
) -> None:
    where = ("--cache", tmp_path / "c")
    assert run("cache", "ls", *where).output == f"{tmp_path}/c: 0 copies, 0 B of at most 64.0 GiB\n"
    snapshot = open_store(path).snapshots["teacher"]
    reader = prepare_reading(snapshot, "materialise", Cache(tmp_path / "c"))
    listed = run("cache", "ls", *where)
    assert listed.exit_code == 0
    assert "teacher" in listed.output
    assert snapshot.root[:12] in listed.output
    assert str(path) in listed.output
    document = json.loads(run("cache", "ls", *where, "--json").output)
    assert [copy["root"] for copy in document["copies"]] == [snapshot.root]
    kept = run("cache", "clear", *where)
    assert kept.exit_code == 0
    assert f"in use and kept: teacher of {path}, " in kept.output
    reader.close()
    cleared = json.loads(run("cache", "clear", *where, "--json").output)
    assert [copy["snapshot"] for copy in cleared["removed"]] == ["teacher"]
    assert cleared["kept"] == []


def test_the_command_line_takes_the_mode_and_the_folder(bound: Path, tmp_path: Path) -> None:
    common = ["train", "--data", TRAIN, "--student", "mlp?hidden=8", "--store", bound]
    common += ["--method", "kd", "--epochs", 1, "--device", "cpu", "--out", tmp_path / "run"]
    refused = run(*common, "--read", "stream")
    assert refused.exit_code == 2
    assert "is a path: use --read materialise or direct" in refused.stderr
    done = run(*common, "--read", "materialise", "--cache", tmp_path / "c")
    assert done.exit_code == 0, done.output
    assert "rows: 2 x 200 x 10 decoded into memory" in done.stderr


@pytest.mark.parametrize("pipeline", ["zarr", "zarrs", "tensorstore"])
@pytest.mark.parametrize("form", FORMS)
def test_other_readers_find_the_same_bytes_in_our_stores(
    stores: dict[str, Path], form: str, pipeline: str
) -> None:
    store = open_store(stores[form])
    snapshot = store.snapshots["teacher"]
    copy = Cache(Path("unused")).copy_of(snapshot, in_memory=True)
    expected = {f"snapshots/teacher/{name}": array for name, array in copy.arrays.items()}
    for name, array in {**expected, "labels": store.labels}.items():
        found = OTHERS[pipeline](stores[form] / name)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()


def with_zarr(path: Path) -> Any:
    return zarr.open_array(path, mode="r")[:]


def with_zarrs(path: Path) -> Any:
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        import zarrs  # noqa: F401 (it registers itself)

        array = zarr.open_array(path, mode="r")
        assert type(array._async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
        return array[:]


def with_tensorstore(path: Path) -> Any:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    opened = tensorstore.open({**spec, "fill_missing_data_reads": False}, read=True)
    return np.asarray(opened.result().read().result())


OTHERS = {"zarr": with_zarr, "zarrs": with_zarrs, "tensorstore": with_tensorstore}
