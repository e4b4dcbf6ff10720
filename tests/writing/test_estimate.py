"""Plans: what a build will cost is said before it is made, and turns out to be true."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from logitstore.errors import InputError, MismatchError, NonFinite
from logitstore.format.cards import EncodingCard, ImportCard, Samples, SnapshotPlan, StoreMeta
from logitstore.format.choice import sample_pairs
from logitstore.format.encodings.table import ENCODINGS
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.building.trial import SAMPLE_ROWS, estimate
from logitstore.precompute.networks.factory import build_model
from logitstore.storage import open_storage
from logitstore.text import duration
from logitstore.writing.estimate import Trial, build_seconds, predict
from logitstore.writing.footprint import footprint, shared_bytes
from logitstore.writing.opening import open_writer
from logitstore.writing.target import Target
from tests.support.commands import run

ARCH = "mlp?hidden=16"
FLIP = [{"name": "RandomHorizontalFlip"}]


def config(tmp_path: Path, samples: int, classes: int = 10, **changes: object) -> BuildConfig:
    """One random teacher over images 8x8 that resemble their class, classes in random order."""
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, classes, samples)
    images = drawn.integers(0, 200, (classes, 8, 8))[labels] + drawn.integers(
        0, 55, (samples, 8, 8)
    )
    np.savez(tmp_path / "d.npz", x=images.astype(np.uint8), y=labels)
    torch.manual_seed(0)
    model = build_model(ARCH, classes=classes, shape=(1, 8, 8))
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    (tmp_path / "flip.json").write_text(json.dumps(FLIP))
    values = {
        "teachers": [str(tmp_path / "teacher.pth")],
        "arch": [ARCH],
        "data": f"npz:{tmp_path}/d.npz?x=x&y=y&classes={classes}",
        "out": str(tmp_path / "s.zarr"),
        "device": "cpu",
        **changes,
    }
    return BuildConfig(**values)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def stored_bytes(root: Path) -> int:
    return sum(map(len, files(root).values()))


@pytest.mark.parametrize("form", ["float16", "float32", "topk:3", "uint8", "uint8:64"])
@pytest.mark.parametrize("samples", [5, 300])
def test_a_store_as_small_as_the_sample_is_predicted_within_two_percent(
    tmp_path: Path, samples: int, form: str
) -> None:
    wanted = config(tmp_path, samples, encoding=form)
    found = estimate(wanted)
    assert not (tmp_path / "s.zarr").exists()
    build(wanted)
    assert found.bytes == pytest.approx(stored_bytes(tmp_path / "s.zarr"), rel=0.02)
    assert found.rows == found.sample_rows == samples
    assert found.bytes_per_row == found.bytes / samples


@pytest.mark.parametrize(
    ("samples", "classes", "changes"),
    [
        (5000, 10, {}),
        (700, 10, {"encoding": "float32", "shard_rows": 64}),
        (1500, 1000, {"shard_rows": 256}),
        (300, 10, {"views": 12}),
        (40, 10, {"views": 30, "first_view": 3}),
    ],
)
def test_bytes_are_predicted_within_two_percent(
    tmp_path: Path, samples: int, classes: int, changes: dict[str, object]
) -> None:
    if "views" in changes:
        changes = {"view_spec": str(tmp_path / "flip.json"), **changes}
    wanted = config(tmp_path, samples, classes, **changes)
    found = estimate(wanted)
    build(wanted)
    assert found.bytes == pytest.approx(stored_bytes(tmp_path / "s.zarr"), rel=0.02)
    assert found.rows == samples * wanted.views


def test_a_dataset_in_the_order_of_its_classes_is_predicted_as_well(tmp_path: Path) -> None:
    wanted = config(tmp_path, 5000)
    data = np.load(tmp_path / "d.npz")
    order = np.argsort(data["y"], kind="stable")
    np.savez(tmp_path / "d.npz", x=data["x"][order], y=data["y"][order])
    found = estimate(wanted)
    build(wanted)
    # Neighbours that are alike compress better than a sample from all over the dataset.
    assert found.bytes == pytest.approx(stored_bytes(tmp_path / "s.zarr"), rel=0.05)


def test_several_teachers_and_every_encoding_are_predicted_from_one_sample(tmp_path: Path) -> None:
    one = config(tmp_path, 300)
    (tmp_path / "other.pth").write_bytes((tmp_path / "teacher.pth").read_bytes())
    both = replace(one, teachers=[*one.teachers, str(tmp_path / "other.pth")])
    found = estimate(both)
    assert [each.name for each in found.teachers] == ["teacher", "other"]
    assert {each.name for each in found.encodings} >= {*ENCODINGS} - {"topk"}
    for each in found.encodings:
        out = tmp_path / f"{each.name}.zarr"
        build(replace(both, encoding=each.name, out=str(out)))
        assert each.bytes == pytest.approx(stored_bytes(out), rel=0.02)
        assert each.bytes_per_row == each.bytes / 600
    assert (found.encodings[0].name, found.encodings[0].kl) == ("float32", {1.0: 0, 4.0: 0})


def test_labels_and_keys_are_counted_as_they_are_written(tmp_path: Path) -> None:
    labels = np.arange(70, dtype=np.int32) % 10
    samples = Samples("tiny", labels, keys=[f"img/{i}.png" for i in range(70)])
    meta = StoreMeta(classes=10, class_names=None, dataset=samples.card())
    logits = np.random.default_rng(0).normal(size=(70, 10)).astype(np.float32)
    plan = SnapshotPlan(
        name="imported",
        views=12,
        samples=70,
        classes=10,
        rows_per_shard=32,
        imported=ImportCard(file="x.npy", sha256="0" * 64),
        encoding=EncodingCard(name="float32"),
        packages={},
    )
    writer = open_writer(Target.read(open_storage(tmp_path / "s.zarr"), meta, samples), plan)
    for shard in writer.missing():
        part = slice(shard.start, shard.stop)
        writer.write(shard, logits[part], labels[part])
    writer.commit()
    stored = files(tmp_path / "s.zarr")
    shared = [key for key in stored if not key.startswith("snapshots/imported/")]
    assert any(key.startswith("keys/c/") for key in shared)
    assert shared_bytes(meta, samples) == sum(len(stored[key]) for key in shared)
    own = sum(len(data) for key, data in stored.items() if key not in shared)
    assert footprint(plan, logits, labels, 0.5).bytes == pytest.approx(own, rel=0.02)


def test_a_sample_is_spread_over_samples_and_views_without_repeats() -> None:
    assert sample_pairs(5, 1, SAMPLE_ROWS) == [(0, i) for i in range(5)]
    assert set(sample_pairs(4, 3, SAMPLE_ROWS)) == {
        (view, i) for view in range(3) for i in range(4)
    }
    for samples, views in ((10_000, 1), (10_000, 7), (100, 8), (3, 500)):
        pairs = sample_pairs(samples, views, SAMPLE_ROWS)
        assert len(set(pairs)) == 512
        assert {view for view, _ in pairs} == set(range(views))
        counts = np.bincount([i * 4 // samples for _, i in pairs], minlength=4)
        if samples >= 4:
            assert counts.tolist() == [128] * 4


PLAN = SnapshotPlan(
    name="teacher",
    views=8,
    samples=1000,
    classes=10,
    rows_per_shard=256,
    imported=ImportCard(file="x.npy", sha256="0" * 64),
    encoding=EncodingCard(name="float16"),
    packages={},
)


def trial(**seconds: float) -> Trial:
    """What a teacher of 10 ms an image gives on 512 rows, right on every other one."""
    labels = np.zeros(512, np.int32)
    logits = np.eye(10, dtype=np.float32)[np.arange(512) % 2]
    base = {"read": 0.001, "together": 0.01, "encode": 0.0, "put": 0.0, **seconds}
    return Trial(labels=labels, logits={"teacher": logits}, forward={"teacher": 0.01}, **base)


def test_eight_views_cost_what_eight_epochs_of_a_live_teacher_do() -> None:
    samples = Samples("tiny", np.zeros(1000, np.int32))
    meta = StoreMeta(classes=10, class_names=None, dataset=samples.card())
    found = predict(meta, samples, [PLAN], trial(), epochs=30, rows_done=2000)
    assert found.seconds == pytest.approx(80)
    assert found.seconds_left == pytest.approx(60)
    assert found.rows_per_second == pytest.approx(100)
    assert found.live_seconds == pytest.approx(300)
    assert found.break_even_students == pytest.approx(8 / 30)
    assert found.break_even_epochs == pytest.approx(8)
    assert found.teachers[0].top1 == 0.5


def test_what_overlaps_costs_once_and_the_last_shard_on_top() -> None:
    assert build_seconds(PLAN, trial(read=0.02)) == pytest.approx(160)
    # 32 shards, written while the next is forwarded: the last one's writing is waited for.
    assert build_seconds(PLAN, trial(encode=0.002)) == pytest.approx(80 + 16 / 32)
    assert build_seconds(PLAN, trial(put=0.5)) == pytest.approx(80 + 16 / 32)
    assert build_seconds(PLAN, trial(put=5)) == pytest.approx(160 + 80 / 32)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.02, "under 1 s"),
        (7.34, "7.3 s"),
        (59, "59 s"),
        (60, "1 min"),
        (4325, "1 h 12 min"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_durations_are_said_in_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_workers_give_the_same_sample(tmp_path: Path) -> None:
    wanted = config(tmp_path, 200, view_spec=str(tmp_path / "flip.json"), views=2)
    alone, others = estimate(wanted), estimate(replace(wanted, workers=2))
    assert alone.encodings == others.encodings
    assert others.read_seconds_per_image > 0


def test_an_unfinished_build_counts_and_is_left_as_it_is(tmp_path: Path) -> None:
    wanted = config(tmp_path, 300, shard_rows=64)
    build(wanted)
    store = tmp_path / "s.zarr"
    finished = estimate(wanted)
    assert (finished.rows_done, finished.seconds_left) == (300, 0)

    other = replace(wanted, snapshots=["other"])
    calls = {"count": 0}

    class Interrupts:
        def start(self, task: str, total: int, unit: str) -> None: ...
        def message(self, text: str) -> None: ...
        def advance(self, count: int) -> None:
            calls["count"] += 1
            if calls["count"] == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(other, Interrupts())
    before = files(store)
    marked = [key for key in before if key.startswith(".build/other/") and "plan" not in key]
    found = estimate(other)
    assert found.rows_done == 64 * len(marked) > 0
    assert found.seconds_left == pytest.approx(found.seconds * (1 - found.rows_done / 300))
    assert estimate(replace(other, fresh=True)).rows_done == 0
    assert files(store) == before


def test_what_a_build_refuses_is_refused(tmp_path: Path) -> None:
    wanted = config(tmp_path, 300)
    build(wanted)
    with pytest.raises(MismatchError, match="another dataset"):
        estimate(replace(wanted, data=f"{wanted.data}&samples=0:200"))
    with pytest.raises(InputError, match="--epochs"):
        estimate(wanted, epochs=0)
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.linear(x.flatten(1) / x.flatten(1).amax(1, keepdim=True))\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    return Net()\n"
    )
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 10)
    state = {f"linear.{key}": value for key, value in linear.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    data = dict(np.load(tmp_path / "d.npz"))
    data["x"][7] = 0  # a black image, no canary: 0 / 0
    np.savez(tmp_path / "black.npz", **data)
    black = replace(
        wanted,
        teachers=[str(tmp_path / "net.pth")],
        arch=[f"{tmp_path}/net.py:net"],
        data=f"npz:{tmp_path}/black.npz?x=x&y=y&classes=10",
        out=str(tmp_path / "black.zarr"),
    )
    with pytest.raises(NonFinite, match="sample 7, view 0"):
        estimate(black)


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., list[object]]:
    config(tmp_path, 300)

    def given(**changes: object) -> list[object]:
        values = {
            "teacher": tmp_path / "teacher.pth",
            "arch": ARCH,
            "data": f"npz:{tmp_path}/d.npz?x=x&y=y",
            "device": "cpu",
            **changes,
        }
        return [word for key, value in values.items() for word in (f"--{key}", value)]

    return given


def test_plan_and_dry_run_say_the_same(
    options: Callable[..., list[object]], tmp_path: Path
) -> None:
    planned = run("plan", *options(epochs=60), "--json")
    assert planned.exit_code == 0, planned.output
    tried = run("build", *options(out=tmp_path / "s.zarr"), "--dry-run", "--json")
    assert tried.exit_code == 0, tried.output
    assert not (tmp_path / "s.zarr").exists()
    plan, dry = json.loads(planned.stdout), json.loads(tried.stdout)
    for key in ("dataset", "rows", "bytes", "encodings", "views"):
        assert plan[key] == dry[key]
    assert plan["seconds"] > 0
    assert (plan["epochs"], dry["epochs"]) == (60, 30)
    assert plan["break_even_students"] == pytest.approx(plan["break_even_epochs"] / 60)
    built = run("build", *options(out=tmp_path / "s.zarr"))
    assert built.exit_code == 0, built.output
    assert plan["bytes"] == pytest.approx(stored_bytes(tmp_path / "s.zarr"), rel=0.02)


def test_a_plan_is_said_in_words(options: Callable[..., list[object]]) -> None:
    said = run("plan", *options()).stdout
    assert "300 (1 x 300 samples, 1 teacher)" in said
    for word in ("a student of 30 epochs", "float16", "uint8:64", "at T=4"):
        assert word in said


def test_plan_has_the_options_of_build() -> None:
    def names(command: str) -> set[str]:
        lines = run(command, "-h").output.splitlines()
        return {line.split()[0] for line in lines if line.startswith("  --")}

    assert "Usage:" in run("plan", "-h").output
    assert "logitstore plan --teacher" in run("plan", "-h").output
    assert names("build") - names("plan") == {"--fresh", "--dry-run"}
    assert names("plan") - names("build") == {"--epochs"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "flaot16"}, "float16"),
        ({"epochs": 0}, "--epochs"),
        ({"teacher": "absent.pth"}, "absent.pth"),
        ({"views": 2}, "--view-spec"),
    ],
)
def test_wrong_input_is_one_message(
    options: Callable[..., list[object]], changes: dict[str, object], said: str
) -> None:
    result = run("plan", *options(**changes))
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("error:") == 1


def test_a_plan_checks_the_store_that_it_is_for(
    options: Callable[..., list[object]], tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    assert run("build", *options(out=store)).exit_code == 0
    before = {key: sha256(data).digest() for key, data in files(store).items()}
    refused = run("plan", *options(out=store, encoding="float32"))
    assert refused.exit_code == 2
    assert "encoding" in refused.stderr
    assert json.loads(run("plan", *options(out=store), "--json").stdout)["rows_done"] == 300
    assert {key: sha256(data).digest() for key, data in files(store).items()} == before
