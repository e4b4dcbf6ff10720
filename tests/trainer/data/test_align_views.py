"""From a teacher's view to a student's, through a real build and real training runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from logitstore.errors import InputError, MismatchError
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.recompute import verify_teacher
from logitstore.precompute.building.run import build
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.forward import forward
from logitstore.precompute.views import views_of
from logitstore.precompute.views.items import ViewItems
from logitstore.reading.opening import chosen_views, open_store
from logitstore.reading.verify import Report
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.data.batches import batches
from logitstore.trainer.data.bind import open_source
from logitstore.trainer.data.order import BatchOrder

ARCH, SAMPLES = "mlp?hidden=16", 120
DATA = f"digits?samples=0:{SAMPLES}"
SHAKE = [
    {"name": "RandomCrop", "size": 8, "padding": 2},
    {"name": "RandomErasing", "p": 0.5, "value": 90},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's checkpoint, a view spec, and a store with snapshots of several kinds."""
    top = tmp_path_factory.mktemp("views")
    (top / "shake.json").write_text(json.dumps(SHAKE))
    torch.manual_seed(0)
    model = build_model(ARCH, classes=10, shape=(1, 8, 8))
    torch.save(model.state_dict(), top / "teacher.pth")
    build(config(top, views=4))
    build(config(top, views=2, snapshots=["half"]))
    build(config(top, views=2, first_view=2, snapshots=["half-view2"]))
    build(config(top, views=3, mix="mixup:0.5,cutmix:1.0", snapshots=["mixed"]))
    build(config(top, view_spec="eval", snapshots=["plain"]))
    return top


def config(top: Path, **changes: Any) -> BuildConfig:
    values: dict[str, Any] = {
        "teachers": [str(top / "teacher.pth")],
        "arch": [ARCH],
        "data": DATA,
        "out": str(top / "s.zarr"),
        "view_spec": str(top / "shake.json"),
        "seed": 7,
        "shard_rows": 32,
        "batch_size": 25,
        "device": "cpu",
        **changes,
    }
    return BuildConfig(**values)


def student(top: Path, name: str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": DATA,
        "student": "mlp?hidden=8",
        "store": str(top / "s.zarr"),
        "snapshot": "teacher",
        "method": "kd",
        "epochs": 6,
        "batch_size": 50,
        "out": str(top / "runs" / name),
        "device": "cpu",
        **changes,
    }
    return TrainConfig(**values)


def live(top: Path, images: torch.Tensor) -> np.ndarray:
    model = build_model(ARCH, classes=10, shape=(1, 8, 8))
    model.load_state_dict(torch.load(top / "teacher.pth", weights_only=True))
    return forward(model.eval(), images, None, "fp32").numpy()


@pytest.mark.parametrize("name", ["teacher", "half-view2", "mixed"])
def test_stored_logits_are_the_teacher_s_on_the_view_that_the_student_replays(
    place: Path, name: str
) -> None:
    source, notes = open_source(student(place, "replay", snapshot=name, epochs=4), None)
    assert notes == []
    assert source.snapshot is not None
    order = BatchOrder(
        samples=source.samples(), seed=1, batch_size=33, view_count=source.view_count, epochs=4
    )
    views = []
    for batch in batches(source, order, workers=0):
        assert batch.teacher is not None
        found, expected = batch.teacher.logits(), live(place, batch.images)
        bound = source.snapshot.encoding.bound(expected) + 1e-5
        assert (np.abs(found - expected).max(axis=1) <= bound).all()
        views.append(batch.request.view)
    assert views == [epoch % source.view_count for epoch in range(4) for _ in range(4)]


def test_views_of_one_snapshot_differ_and_so_do_their_logits(place: Path) -> None:
    snapshot = open_store(place / "s.zarr").snapshots["teacher"]
    rows = [snapshot.logits(np.arange(SAMPLES), view) for view in range(4)]
    assert all(np.abs(rows[0] - other).max(axis=1).mean() > 0.01 for other in rows[1:])


def test_views_that_were_added_later_are_those_of_one_build(place: Path) -> None:
    store = open_store(place / "s.zarr")
    whole, joined = store.snapshots["teacher"], chosen_views(store, "half+half-view2")
    assert joined.meta.views == 4
    for view in range(4):
        ours, theirs = (s.rows(np.arange(SAMPLES), view).arrays for s in (whole, joined))
        assert all((ours[name] == theirs[name]).all() for name in ours)
    with pytest.raises(InputError, match=r"view 4 is outside 0\.\.3"):
        joined.rows([0], 4)
    weights = []
    for name, snapshot in (("whole", "teacher"), ("joined", "half+half-view2")):
        result = train(student(place, name, snapshot=snapshot))
        assert result.views_seen == (2, 2, 1, 1)
        weights.append((result.run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("half-view2+half", "begins with view 0, view 4 comes next"),
        ("half+half", "begins with view 0, view 2 comes next"),
        ("half+plain", "spec"),
        ("half+mixed", "mix"),
    ],
)
def test_views_that_do_not_continue_each_other_are_refused(
    place: Path, name: str, says: str
) -> None:
    with pytest.raises(MismatchError, match=says):
        chosen_views(open_store(place / "s.zarr"), name)


def test_a_committed_snapshot_is_not_grown_but_told_how_to_add_views(place: Path) -> None:
    with pytest.raises(MismatchError, match=r"--first-view 4 --views 5.*teacher\+teacher-view4"):
        build(config(place, views=9))
    (built,) = build(config(place, views=1, first_view=4))
    assert built.name == "teacher-view4"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"view_spec": "eval", "views": 2}, "draws nothing at random"),
        ({"view_spec": "eval", "first_view": 1}, "draws nothing at random"),
        ({"first_view": -1}, "first_view must be at least 0"),
        ({"mix": "mixpu:1"}, "mixpu"),
        ({"view_spec": "cifar-train"}, "cannot be done to an image of 8x8"),
    ],
)
def test_views_that_cannot_be_made_are_refused_before_anything_is_written(
    place: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        build(config(place, out=str(tmp_path / "new.zarr"), **changes))
    assert list(tmp_path.iterdir()) == []


def test_the_teacher_recomputes_rows_of_later_and_of_mixed_views(place: Path) -> None:
    store = open_store(place / "s.zarr")
    for name in ("half-view2", "mixed"):
        report = Report(store.url)
        verify_teacher(
            store,
            store.snapshots[name],
            report,
            teacher=str(place / "teacher.pth"),
            data=DATA,
            arch=ARCH,
            sample=40,
        )
        assert report.breaches == []
        assert report.rows_recomputed == 40


def test_a_student_may_augment_freely_over_fixed_targets_but_not_over_random_ones(
    place: Path,
) -> None:
    free = student(place, "free", snapshot="plain", augment=str(place / "shake.json"), epochs=3)
    source, _ = open_source(free, None)
    order = BatchOrder(samples=source.samples(), seed=0, batch_size=SAMPLES, view_count=1, epochs=3)
    shown = list(batches(source, order, workers=0))
    own = replace(free, store=None, snapshot=None, method="ce")
    alone = list(batches(open_source(own, None)[0], order, workers=0))
    for batch, plain in zip(shown, alone, strict=True):
        assert torch.equal(batch.images, plain.images)
        assert batch.request.view == 0
    assert len({batch.images.numpy().tobytes() for batch in shown}) == 3
    assert train(free).views_seen == (3,)
    with pytest.raises(InputError, match="answers to random views"):
        train(student(place, "refused", augment="eval"))
    assert not (place / "runs" / "refused").exists()


def test_a_student_of_another_input_size_sees_the_same_regions_and_the_same_logits(
    place: Path,
) -> None:
    source, _ = open_source(student(place, "large", size=16), None)
    assert source.snapshot is not None
    card = source.snapshot.meta.view
    assert card is not None
    small = ViewItems(source.dataset, views_of(card)).show(1, 5)
    large = ViewItems(source.dataset, source.views).show(1, 5)
    assert large.shape == (1, 16, 16)
    shrunk = torch.nn.functional.avg_pool2d(large.float(), 2)
    assert (shrunk - small).abs().mean() < (shrunk - small.flip(1)).abs().mean() / 2
    assert train(student(place, "large", size=16, student="mlp?hidden=4", epochs=1)).epochs == 1


def test_validation_and_evaluation_are_measured_on_the_images_as_they_are(place: Path) -> None:
    learns = {"epochs": 40, "lr": 0.2, "ce_weight": 0.0, "kd_weight": 1.0, "temperature": 1.0}
    config_ = student(place, "measured", val=DATA, **learns)
    result = train(config_)
    found = evaluate(result.run, DATA)
    assert found["top1"] == pytest.approx(result.metrics["val_accuracy"])
    with_store = evaluate(result.run, DATA, store=config_.store, snapshot="teacher")
    assert with_store["top1"] == found["top1"]
    source, _ = open_source(config_, None)
    items = ViewItems(source.dataset, source.views)
    shown = torch.stack([items.show(0, sample) for sample in range(SAMPLES)])
    model = build_model("mlp?hidden=8", classes=10, shape=(1, 8, 8))
    model.load_state_dict(load_file(result.run / "model.safetensors"))
    guess = forward(model.eval(), shown, None, "fp32").numpy().argmax(1)
    taught = open_store(place / "s.zarr").snapshots["teacher"].logits(np.arange(SAMPLES)).argmax(1)
    assert with_store["kd_error"] == pytest.approx((guess != taught).mean())
    # On the images as they are the student agrees otherwise, or this test could not tell.
    plain = evaluate(result.run, DATA, store=config_.store, snapshot="plain")
    assert plain["kd_error"] != with_store["kd_error"]


def test_an_allowed_mismatch_is_written_down(place: Path, tmp_path: Path) -> None:
    dataset = open_dataset(DATA)
    pixels = np.stack([np.asarray(dataset.image(i)) for i in range(SAMPLES)])
    np.savez(tmp_path / "dark.npz", x=pixels // 2, y=dataset.labels)
    (tmp_path / "runs").mkdir()
    other = replace(
        student(tmp_path, "dark", epochs=1),
        store=str(place / "s.zarr"),
        data=f"npz:{tmp_path}/dark.npz?classes=10",
    )
    with pytest.raises(MismatchError, match="--allow-mismatch trains nevertheless"):
        train(other)
    assert not Path(other.out).exists()
    result = train(replace(other, allow_mismatch=True))
    (note,) = result.notes
    assert note.startswith("allowed mismatch: npz:dark.npz")
    assert json.loads((result.run / "result.json").read_text())["notes"] == [note]
    assert json.loads((result.run / "inputs.json").read_text())["notes"] == [note]
    assert train(replace(other, allow_mismatch=True)).notes == (note,)


def test_too_few_epochs_for_the_views_are_told(place: Path) -> None:
    lines: list[str] = []

    class Told:
        def start(self, what: str, total: int, unit: str) -> None: ...

        def advance(self, count: int) -> None: ...

        def message(self, text: str) -> None:
            lines.append(text)

    result = train(student(place, "few", epochs=3), progress=Told())
    assert result.views_seen == (1, 1, 1, 0)
    assert "3 epochs show views 0..2; the other 1 of the store's 4 are never seen" in lines
