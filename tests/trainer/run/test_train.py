"""Training runs, small but real: digits, an MLP, a store with a teacher's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from logitstore.errors import InputError, MismatchError, NonFinite
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.teachers import find_teachers
from logitstore.precompute.views import Views
from logitstore.reading.opening import open_store
from logitstore.threads import read_ahead
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.data.batches import batches
from logitstore.trainer.data.bind import bind
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.run_data import open_run_data
from logitstore.trainer.data.samples import chosen_samples
from logitstore.trainer.data.source import Source
from logitstore.trainer.measure.network import Network
from logitstore.trainer.methods.base import Method, Outputs
from logitstore.trainer.methods.table import METHODS
from logitstore.trainer.run.checkpoint import pack_weights
from logitstore.trainer.run.device import own_randomness
from tests.support.runs import Listener, lines

TRAIN, TEST = "digits?train=true", "digits?train=false"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept every epoch's weights."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    train(
        TrainConfig(
            data=TRAIN,
            student="mlp?hidden=64",
            val=TEST,
            out=str(out),
            epochs=4,
            lr=0.2,
            device="cpu",
            snapshots="every-epoch",
        )
    )
    return out


@pytest.fixture(scope="module")
def store(
    teacher: Path, bound_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The teacher's logits on its training images."""
    model = build_model("mlp?hidden=64", classes=10, shape=(1, 8, 8))
    model.load_state_dict(load_file(teacher / "model.safetensors"))
    logits = Network(model, None, CPU, 256).logits(shown(TRAIN))
    return bound_store(tmp_path_factory.mktemp("stores") / "digits.zarr", TRAIN, logits[None])


def shown(data: str) -> Source:
    return Source(dataset=open_dataset(data), views=Views(()), classes=10, view_count=1)


def test_a_run_learns_and_leaves_what_it_promises(teacher: Path) -> None:
    history = lines(teacher)
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert history[-1]["val_accuracy"] > 0.85
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert history[-1]["loss_ce"] == history[-1]["loss"]
    assert list(teacher.glob("events.out.tfevents.*"))
    assert TrainConfig.from_toml(teacher / "config.toml").epochs == 4
    assert (teacher / "snapshots/epoch-0004.safetensors").read_bytes() == (
        teacher / "model.safetensors"
    ).read_bytes()


def test_kept_epochs_are_teachers_with_the_accuracy_that_was_logged(teacher: Path) -> None:
    sources = find_teachers([str(teacher)])
    assert [source.name for source in sources] == [f"epoch-000{e}" for e in (1, 2, 3, 4)]
    for source, line in zip(sources, lines(teacher), strict=True):
        assert source.arch == "mlp?hidden=64"
        measured = evaluate(source.path, TEST)
        assert measured["top1"] == line["val_accuracy"]
        assert measured["nll"] == pytest.approx(line["val_nll"], rel=1e-6)
        assert measured["samples"] == 597


def test_a_distilled_student_learns_from_the_store_alone(store: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=TRAIN,
        student="mlp?hidden=32",
        store=str(store),
        method="kd",
        ce_weight=0.0,
        kd_weight=1.0,
        epochs=8,
        val=TEST,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    result = train(config)
    history = lines(result.run)
    assert history[-1]["loss_ce"] == 0
    assert result.metrics["train_kd_error"] < 0.1 < history[0]["train_kd_error"]
    assert result.metrics["val_accuracy"] > 0.85
    against = evaluate(result.run, TRAIN, store=str(store))
    assert against["kd_error"] == pytest.approx(1 - against["agreement"])
    assert against["kd_error"] < 0.1


def test_a_run_on_labels_names_the_store_only_where_there_is_one(
    store: Path, tmp_path: Path
) -> None:
    alone, beside = Listener(), Listener()
    config = TrainConfig(
        data=TRAIN, student="mlp?hidden=8", epochs=1, out=str(tmp_path / "alone"), device="cpu"
    )
    train(config, progress=alone)
    train(replace(config, store=str(store), out=str(tmp_path / "beside")), progress=beside)
    assert "method ce: cross-entropy with the labels alone." in alone.messages
    assert not any("does not learn from these logits" in text for text in alone.messages)
    assert any(
        text.startswith(f"{store}: method ce does not learn from these logits")
        for text in beside.messages
    )


def test_a_perfect_copy_of_the_student_has_nothing_to_learn(
    bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    with own_randomness(5, CPU):
        model = build_model("mlp?hidden=16", classes=10, shape=(1, 8, 8))
    logits = Network(model, None, CPU, 256).logits(shown(TRAIN))
    config = TrainConfig(
        data=TRAIN,
        student="mlp?hidden=16",
        store=str(bound_store(tmp_path / "own.zarr", TRAIN, logits[None])),
        method="kd",
        ce_weight=0.0,
        weight_decay=0.0,
        epochs=1,
        seed=5,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    result = train(config)
    assert result.metrics["loss_kd"] < 1e-9
    assert result.metrics["train_kd_error"] == 0
    after = load_file(result.run / "model.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-4)


def test_plain_training_with_a_store_only_compares_with_the_teacher(
    store: Path, tmp_path: Path
) -> None:
    plain = TrainConfig(
        data=TRAIN, student="mlp?hidden=16", epochs=1, out=str(tmp_path / "a"), device="cpu"
    )
    beside = replace(plain, store=str(store), out=str(tmp_path / "b"))
    results = [train(plain), train(beside)]
    weights = [(result.run / "model.safetensors").read_bytes() for result in results]
    assert weights[0] == weights[1]
    assert "train_kd_error" not in results[0].metrics
    assert 0 < results[1].metrics["train_kd_error"] < 1


def test_a_served_store_gives_the_same_weights_as_its_path(
    store: Path, serve: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve(store.parent)
    config = TrainConfig(
        data=TRAIN,
        student="mlp?hidden=16",
        store=str(store),
        method="kd",
        epochs=2,
        out=str(tmp_path / "path"),
        device="cpu",
    )
    train(config)
    train(replace(config, store=f"{server.url}/{store.stem}", out=str(tmp_path / "url")))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("path", "url")]
    assert weights[0] == weights[1]


def test_batches_do_not_depend_on_workers_or_on_where_they_begin(store: Path) -> None:
    opened = open_store(store)
    source, warnings = bind(opened, opened.snapshots["teacher"], open_dataset(TRAIN))
    assert warnings == []
    samples = chosen_samples(np.arange(1200), 300, 0)
    order = BatchOrder(samples=samples, seed=1, batch_size=128, view_count=1, epochs=2)
    alone, helped = (list(batches(source, order, workers=workers)) for workers in (0, 2))
    later = list(batches(source, replace(order, first_epoch=1, first_step=1)))
    assert [len(batch.labels) for batch in alone] == [128, 128, 44] * 2
    assert len(later) == 2
    for one, other in [*zip(alone, helped, strict=True), *zip(alone[4:], later, strict=True)]:
        assert one.request[:3] == other.request[:3]
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.teacher is not None
        assert other.teacher is not None
        assert torch.equal(one.teacher.tensor(), other.teacher.tensor())
    for batch in alone:
        wanted = batch.request.indices
        assert np.array_equal(batch.labels, opened.labels[wanted])
        assert np.array_equal(batch.images[3, 0], open_dataset(TRAIN).image(int(wanted[3])))
    for epoch in (0, 1):
        seen = [b.request.indices for b in alone if b.request.epoch == epoch]
        assert np.array_equal(np.sort(np.concatenate(seen)), samples)


def test_each_epoch_uses_the_next_view_of_the_store(
    bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 1200, 10)).astype(np.float32)
    opened = open_store(bound_store(tmp_path / "views.zarr", TRAIN, logits))
    source, _ = bind(opened, opened.snapshots["teacher"], open_dataset(TRAIN))
    order = BatchOrder(samples=np.arange(1200), seed=0, batch_size=600, view_count=3, epochs=5)
    for batch in batches(source, order):
        epoch, _, view, indices = batch.request
        assert view == epoch % 3
        assert batch.teacher is not None
        assert np.array_equal(batch.teacher.logits(), logits[view, indices])


def test_a_subset_is_fixed_by_its_seed() -> None:
    first, again, other = (chosen_samples(np.arange(1000), 50, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first)) == 50
    with pytest.raises(InputError, match="--limit 1201 is more than the 1200 samples"):
        open_run_data(TrainConfig(data=TRAIN, student="mlp", out="run", limit=1201), None)


def test_reading_ahead_keeps_the_order_and_raises_in_turn() -> None:
    def fetch(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number * number

    results = read_ahead(range(20), fetch, depth=3)
    assert [next(results) for _ in range(7)] == [number * number for number in range(7)]
    with pytest.raises(ValueError, match="seven"):
        next(results)


def test_a_caller_s_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    config = TrainConfig(data=TEST, student="mlp?dropout=0.5", epochs=1, out=str(tmp_path / "run"))
    train(replace(config, device="cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_method_needs_nothing_but_its_entry_in_the_table(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Matching(Method):
        needs_teacher = True
        kd_weight: float = 0.5

        def terms(self, batch: Outputs, epoch: int) -> dict[str, Tensor]:
            assert batch.teacher is not None
            return {"match": self.kd_weight * (batch.student - batch.teacher).square().mean(1)}

    monkeypatch.setitem(METHODS, "matching", Matching)
    config = TrainConfig(
        data=TRAIN,
        student="mlp?hidden=16",
        store=str(store),
        method="matching",
        epochs=2,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    train(config)
    history = lines(tmp_path / "run")
    assert history[1]["loss"] == history[1]["loss_match"] < history[0]["loss_match"]
    assert TrainConfig.from_toml(tmp_path / "run/config.toml").kd_weight == 0.5


def test_samples_without_a_label_are_shown_but_not_counted(tmp_path: Path) -> None:
    dataset = open_dataset(TRAIN)
    images = np.stack([np.asarray(dataset.image(i)) for i in range(200)])
    labels = np.where(np.arange(200) % 2, dataset.labels[:200], -1)
    np.savez(tmp_path / "half.npz", x=images, y=labels)
    config = TrainConfig(
        data=f"npz:{tmp_path}/half.npz?classes=10",
        student="mlp?hidden=32",
        epochs=40,
        batch_size=32,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    assert train(config).metrics["train_accuracy"] > 0.9


def test_a_loss_that_blows_up_stops_with_epoch_and_step(tmp_path: Path) -> None:
    config = TrainConfig(
        data=TRAIN, student="mlp", lr=1e30, epochs=2, out=str(tmp_path / "run"), device="cpu"
    )
    with pytest.raises(NonFinite, match=r"loss became (nan|inf) in epoch 1, step \d+: lower --lr"):
        train(config)
    assert not (tmp_path / "run/checkpoints/last.safetensors").exists()


def test_tied_weights_load_with_plain_safetensors(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

    model, other = Tied(), Tied()
    (tmp_path / "tied.safetensors").write_bytes(pack_weights(model))
    other.load_state_dict(load_file(tmp_path / "tied.safetensors"))
    assert torch.equal(other.second.weight, model.first.weight)
    assert other.second.weight is other.first.weight


def test_a_last_batch_that_batchnorm_refuses_is_explained(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))\n"
    )
    config = TrainConfig(
        data=f"{TRAIN}&samples=0:129",
        student=f"{tmp_path}/net.py:net",
        out=str(tmp_path / "run"),
        device="cpu",
    )
    with pytest.raises(InputError, match=r"from a batch of 1 images .* another --batch-size"):
        train(config)


def test_a_student_that_does_not_fit_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def seven(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
        "def colour(): return nn.Conv2d(3, 10, 8)\n"
    )
    for factory, error, says in [
        ("seven", MismatchError, r"gives \(1, 7\) for one image, expected \(1, 10\)"),
        ("colour", InputError, r"does not run on images of shape \(1, 8, 8\)"),
    ]:
        config = TrainConfig(
            data=TRAIN, student=f"{tmp_path}/net.py:{factory}", out=str(tmp_path / "run")
        )
        with pytest.raises(error, match=says):
            train(replace(config, device="cpu"))
    assert not (tmp_path / "run").exists()


def test_students_that_cannot_learn_are_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "from torch import nn\n"
        "def unlabelled(): return [(np.zeros((8, 8), np.uint8), -1)] * 4\n"
        "def frozen(): return nn.Sequential(nn.Flatten(), nn.Softmax(1))\n"
        "class Odd(nn.Module):\n"
        "    def forward(self, x): raise IndexError\n"
    )
    for changes, message in (
        ({"data": f"{file}:unlabelled"}, "no label is known"),
        ({"student": f"{file}:frozen"}, "no weights to train"),
        ({"student": f"{file}:Odd"}, "no weights to train|IndexError"),
    ):
        values = {"data": TRAIN, "student": "mlp", "out": str(tmp_path / "run"), **changes}
        with pytest.raises(InputError, match=message):
            train(TrainConfig(**values, device="cpu"))
        assert not (tmp_path / "run").exists()
