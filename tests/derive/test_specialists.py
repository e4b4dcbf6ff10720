"""Specialists: which classes belong together, and students that tell these apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.special import softmax

from logitstore.derive.specialists import (
    Cluster,
    SpecialistPlan,
    plan_specialists,
    prediction_covariance,
    read_plan,
    write_plan,
)
from logitstore.errors import InputError, LogitstoreError, MismatchError, NotFound, UnknownName
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.views import Views
from logitstore.reading.opening import open_store
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.requirements import refuse_samples
from logitstore.trainer.data.samples import choose_samples
from logitstore.trainer.data.source import Source
from logitstore.trainer.data.specialist import own_and_others, specialised
from logitstore.trainer.run.learner import begin_with
from tests.support.commands import run
from tests.support.runs import run_logits

Build = Callable[..., Path]
DATA, TEST = "digits?samples=0:300", "digits?train=false"
DIGITS = tuple("0123456789")


def planned(*groups: tuple[int, ...], names: tuple[str, ...] | None = DIGITS) -> SpecialistPlan:
    return SpecialistPlan(
        snapshot="generalist",
        generalist="0" * 64,
        classes=10,
        class_names=names,
        clusters=4,
        seed=0,
        n_init=10,
        specialists=tuple(
            Cluster(name=f"s{number}", classes=group, share=len(group) / 10)
            for number, group in enumerate(groups, 1)
        ),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generalist's run, a plan, and a run of its specialist s1 for 1, 7 and 9."""
    place = tmp_path_factory.mktemp("specialists")
    write_plan(planned((1, 7, 9), (3, 8)), place / "plan.json")
    general = TrainConfig(
        data=DATA,
        student="mlp?hidden=24",
        epochs=6,
        batch_size=32,
        out=str(place / "generalist"),
        device="cpu",
    )
    train(general)
    train(special(place, epochs=12, val=TEST))
    return place


def special(place: Path, name: str = "s1", **change: Any) -> TrainConfig:
    config = TrainConfig(
        data=DATA,
        student="mlp?hidden=24",
        init=str(place / "generalist"),
        specialist=f"{place}/plan.json:{name}",
        batch_size=32,
        out=str(place / name),
        device="cpu",
    )
    return replace(config, **change)


def planted(labels: NDArray[np.int32], pairs: tuple[tuple[int, int], ...]) -> NDArray[np.float32]:
    """Logits (1, N, 10) that are sure of the label, but not within these pairs of classes."""
    logits = np.random.default_rng(0).standard_normal((len(labels), 10)) * 0.1
    logits += 6 * np.eye(10)[labels]
    for pair in pairs:
        rows = np.flatnonzero(np.isin(labels, pair))
        logits[np.ix_(rows, pair)] = 6 + np.random.default_rng(1).standard_normal((len(rows), 2))
    return logits[None].astype(np.float32)


def test_the_covariance_is_that_of_all_predictions(tmp_path: Path, tiny_store: Build) -> None:
    snapshot = open_store(tiny_store(tmp_path / "s.zarr", views=2, form="float32")).snapshots
    rows = [snapshot["teacher"].logits(np.arange(100), view) for view in (0, 1)]
    predicted = softmax(np.concatenate(rows).astype(np.float64), axis=1)
    expected = np.cov(predicted.T, bias=True)
    assert prediction_covariance(snapshot["teacher"]) == pytest.approx(expected, abs=1e-12)


def test_classes_that_are_confused_get_a_specialist(tmp_path: Path, bound_store: Build) -> None:
    labels = open_dataset(DATA).labels
    path = bound_store(tmp_path / "s.zarr", DATA, planted(labels, ((3, 8), (1, 7))))
    command = ("specialists", "plan", path, "--clusters", 8, "--out", tmp_path / "plan.json")
    done = run(*command)
    assert done.exit_code == 0, done.output
    plan = read_plan(tmp_path / "plan.json")
    assert [each.classes for each in plan.specialists] == [(1, 7), (3, 8)]
    assert plan.specialists[0].share == np.isin(labels, (1, 7)).mean()
    assert plan.generalist == open_store(path).snapshots["teacher"].root
    assert (plan.seed, plan.n_init, plan.class_names) == (0, 10, DIGITS)
    assert "s2: 2 classes, " in done.stdout
    assert "alone in a cluster, without a specialist: 0, 2, 4, 5, 6, 9" in done.stderr
    before = (tmp_path / "plan.json").read_bytes()
    assert run(*command).exit_code == 0
    assert run(*command[:4], 7, *command[5:]).exit_code == 2
    assert (tmp_path / "plan.json").read_bytes() == before


def test_the_seed_decides_among_clusterings(tmp_path: Path, tiny_store: Build) -> None:
    store = open_store(tiny_store(tmp_path / "s.zarr", classes=40))
    snapshot = store.snapshots["teacher"]

    def sets(seed: int) -> tuple[tuple[int, ...], ...]:
        plan, _ = plan_specialists(store, snapshot, clusters=12, seed=seed)
        assert plan.seed == seed
        return tuple(each.classes for each in plan.specialists)

    found = [sets(seed) for seed in (0, 1, 2, 0)]
    assert found[0] == found[3]
    assert len(set(found)) > 1


def test_a_class_that_no_sample_has_is_in_no_cluster(tmp_path: Path, bound_store: Build) -> None:
    data = "digits?samples=0:6"
    labels = open_dataset(data).labels
    path = bound_store(tmp_path / "s.zarr", data, planted(labels, ()))
    store = open_store(path)
    there = np.unique(labels)
    plan, notes = plan_specialists(store, store.snapshots["teacher"], clusters=len(there) - 1)
    assert {number for each in plan.specialists for number in each.classes} <= set(there.tolist())
    assert notes[0].startswith(f"{10 - len(there)} classes have no labelled sample")


@pytest.mark.parametrize("clusters", [1, 11])
def test_a_number_of_clusters_that_cannot_be_is_refused(
    clusters: int, tmp_path: Path, tiny_store: Build
) -> None:
    path = tiny_store(tmp_path / "s.zarr")
    done = run("specialists", "plan", path, "--clusters", clusters, "--out", tmp_path / "p.json")
    assert done.exit_code == 2
    assert f"--clusters {clusters}: expected 2..10" in done.stderr
    assert not (tmp_path / "p.json").exists()


def test_what_tells_nothing_of_classes_is_not_clustered(
    tmp_path: Path, tiny_store: Build, bound_store: Build
) -> None:
    store = open_store(tiny_store(tmp_path / "s.zarr"))
    with pytest.raises(InputError, match="each of the 10 classes is a cluster of its own"):
        plan_specialists(store, store.snapshots["teacher"], clusters=10)
    few = open_store(tiny_store(tmp_path / "k.zarr", form="topk:3"))
    with pytest.raises(InputError, match="kept as topk"):
        plan_specialists(few, few.snapshots["teacher"], clusters=3)
    same = open_store(bound_store(tmp_path / "c.zarr", DATA, np.zeros((1, 300, 10), np.float32)))
    with pytest.raises(InputError, match="tell only 1 groups of classes apart"):
        plan_specialists(same, same.snapshots["teacher"], clusters=3)
    with pytest.raises(NotFound, match="no such folder"):
        write_plan(planned((1, 2)), tmp_path / "nowhere" / "p.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"specialists": []}, "specialists"),
        ({"specialists.0.classes": [1]}, "classes"),
        ({"specialists.0.classes": [7, 1]}, "must rise and lie in 0..9"),
        ({"specialists.0.classes": [1, 10]}, "must rise and lie in 0..9"),
        ({"specialists.0.classes": list(range(10))}, "nothing is left for the rest"),
        ({"specialists.1.name": "s1"}, "one name, or the same classes"),
        ({"specialists.0.share": 0.0}, "greater than 0"),
        ({"class_names": ["(rest)", *DIGITS[1:]]}, r"a class is named '\(rest\)'"),
        ({"class_names": ["a"]}, "1 class_names for 10 classes"),
        ({"nclusters": 3}, "nclusters"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    write_plan(planned((1, 7), (3, 8)), tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    for path, value in change.items():
        inside: Any = document
        *parts, last = path.split(".")
        for part in parts:
            inside = inside[int(part) if part.isdigit() else part]
        inside[last] = value
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=says):
        read_plan(tmp_path / "plan.json")


def test_a_plan_means_the_same_however_its_file_is_laid_out(tmp_path: Path) -> None:
    plan = planned((1, 7), (3, 8))
    write_plan(plan, tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps(json.loads((tmp_path / "a.json").read_text())))
    assert read_plan(tmp_path / "a.json") == read_plan(tmp_path / "b.json") == plan
    assert read_plan(tmp_path / "b.json").sha256 == plan.sha256
    with pytest.raises(NotFound, match="specialists plan"):
        read_plan(tmp_path / "c.json")
    with pytest.raises(UnknownName, match="did you mean 's1'"):
        plan.cluster("s11")


@pytest.mark.parametrize(
    ("class_names", "order"),
    [(DIGITS, range(10)), (tuple(reversed(DIGITS)), range(9, -1, -1)), (None, range(10))],
)
@pytest.mark.parametrize("names", [DIGITS, None])
def test_each_class_becomes_its_output_and_all_others_the_last(
    names: tuple[str, ...] | None,
    class_names: tuple[str, ...] | None,
    order: range,
    tmp_path: Path,
) -> None:
    """Classes are found by name where both sides have names, else by number."""
    write_plan(planned((1, 7, 9), names=names), tmp_path / "plan.json")
    labels = np.array([*range(10), -1], np.int32)
    data = ImageDataset("d", labels, lambda i: i, classes=10, class_names=class_names)
    found, class_map = specialised(data, f"{tmp_path}/plan.json:s1")
    by_name = names is not None and class_names is not None
    meant = [order[label] if by_name else label for label in range(10)]
    outputs = {1: 0, 7: 1, 9: 2}
    assert found.labels.tolist() == [*(outputs.get(each, 3) for each in meant), -1]
    assert (found.classes, found.class_names) == (4, ("1", "7", "9", "(rest)"))
    assert len(class_map) == 10


def test_data_of_other_classes_are_refused(tmp_path: Path) -> None:
    write_plan(planned((1, 7)), tmp_path / "plan.json")
    data = ImageDataset("d", np.zeros(3, np.int32), lambda i: i, 2, class_names=("0", "cat"))
    with pytest.raises(MismatchError, match=r"has a class 'cat', .* make the plan from a store of"):
        specialised(data, f"{tmp_path}/plan.json:s1")


def test_an_epoch_shows_all_special_samples_and_as_many_others() -> None:
    own, others = np.arange(0, 20), np.arange(100, 200)
    order = BatchOrder(samples=own, others=others, seed=3, batch_size=7, view_count=1, epochs=3)
    epochs = [
        np.concatenate([request.indices for request in order if request.epoch == epoch])
        for epoch in range(3)
    ]
    for shown in epochs:
        assert len(shown) == 40 == order.epoch_samples
        assert np.array_equal(np.sort(shown[shown < 100]), own)
        assert len(np.unique(shown[shown >= 100])) == 20
        assert set(shown[shown >= 100]) <= set(others)
        assert 5 < (shown[:20] < 100).sum() < 15  # in one shuffled order
    assert len({tuple(np.sort(shown[shown >= 100])) for shown in epochs}) == 3
    later = replace(order, first_epoch=2, first_step=1)
    assert np.array_equal(np.concatenate([r.indices for r in later]), epochs[2][7:])
    few = replace(order, others=np.arange(100, 108))
    shown = few.of_epoch(0)
    assert set(np.bincount(shown[shown >= 100])[100:]) == {2, 3}


def test_a_class_without_samples_is_named_before_training() -> None:
    names = ("cat", "dog", "(rest)")

    def source(labels: list[int]) -> Source:
        data = ImageDataset("d", np.array(labels, np.int32), lambda i: i, 3, names)
        return Source(dataset=data, views=Views(()), classes=3, view_count=1)

    own, others = own_and_others(source([2, 0, -1, 1, 2]), np.arange(5))
    assert (own.tolist(), others.tolist()) == ([1, 3], [0, 4])
    config = TrainConfig(data="d", student="mlp", specialist="plan.json:s1", out="run")
    for labels, missing in (([0, 2, 2], "'dog'"), ([0, 1], r"'\(rest\)'"), ([-1], "'cat', 'dog'")):
        with pytest.raises(InputError, match=f"no sample of class {missing}"):
            refuse_samples(config, source(labels), choose_samples(config, source(labels)))


def test_a_run_begins_with_the_weights_that_it_is_given(runs: Path) -> None:
    weights = runs / "generalist/model.safetensors"
    there = load_file(weights)
    model = build_model("mlp?hidden=24", classes=4, shape=(1, 8, 8))
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    notes = begin_with(model, weights)
    last = sorted(there)[-2:]
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if key in last else there[key])
    assert len(notes) == 1
    assert "has another shape: begun afresh" in notes[0]
    same = build_model("mlp?hidden=24", classes=10, shape=(1, 8, 8))
    assert begin_with(same, weights) == []
    assert all(torch.equal(value, there[key]) for key, value in same.state_dict().items())
    with pytest.raises(InputError, match=r"--init .*does not fit this architecture; 2 mis-shaped"):
        begin_with(build_model("mlp?hidden=25", classes=10, shape=(1, 8, 8)), weights)


def test_a_run_with_no_learning_keeps_the_weights_it_began_with(runs: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=DATA,
        student="mlp?hidden=24",
        init=str(runs / "generalist"),
        lr=1e-30,
        weight_decay=0.0,
        epochs=1,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    train(config)
    before, after = runs / "generalist/model.safetensors", tmp_path / "run/model.safetensors"
    assert after.read_bytes() == before.read_bytes()
    with pytest.raises(MismatchError, match="init = "):
        train(replace(config, init=str(before)))


def test_other_weights_under_the_same_name_are_noticed_on_resume(
    runs: Path, tmp_path: Path
) -> None:
    place = tmp_path / "weights.safetensors"
    place.write_bytes((runs / "generalist/model.safetensors").read_bytes())
    config = TrainConfig(
        data=DATA,
        student="mlp?hidden=24",
        init=str(place),
        epochs=1,
        out=str(tmp_path / "run"),
        device="cpu",
    )
    train(config)
    (tmp_path / "run/result.json").unlink()
    train(config)
    (tmp_path / "run/result.json").unlink()
    place.write_bytes((tmp_path / "run/model.safetensors").read_bytes())
    with pytest.raises(MismatchError, match="begun with init_sha256"):
        train(config)


def test_a_specialist_learns_its_classes(runs: Path) -> None:
    result = json.loads((runs / "s1/result.json").read_text())
    assert result["metrics"]["val_accuracy"] > 0.9
    assert result["metrics"]["train_accuracy"] > 0.9
    measured = evaluate(runs / "s1", TEST, device="cpu")
    assert measured["top1"] == pytest.approx(result["metrics"]["val_accuracy"])
    logits, labels = run_logits(runs / "s1", TEST)
    assert logits.shape == (597, 4)
    digits = open_dataset(TEST).labels
    assert labels.tolist() == [{1: 0, 7: 1, 9: 2}.get(int(each), 3) for each in digits]
    inputs = json.loads((runs / "s1/inputs.json").read_text())
    assert inputs["class_names"] == ["1", "7", "9", "(rest)"]


def test_an_interrupted_specialist_ends_in_the_same_weights(runs: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Stopping:
        seen = 0

        def start(self, *_: object) -> None: ...
        def message(self, *_: object) -> None: ...
        def advance(self, count: int) -> None:
            self.seen += count
            if self.seen > 700:
                raise Stop

    config = special(runs, epochs=12, val=TEST, out=str(tmp_path / "run"))
    with pytest.raises(Stop):
        train(config, progress=Stopping())
    assert not (tmp_path / "run/model.safetensors").exists()
    train(config)
    again, whole = tmp_path / "run/model.safetensors", runs / "s1/model.safetensors"
    assert again.read_bytes() == whole.read_bytes()


def test_a_built_specialist_knows_which_class_is_which_output(runs: Path, tmp_path: Path) -> None:
    build(BuildConfig(teachers=[str(runs / "s1")], data=TEST, out=str(tmp_path / "s.zarr")))
    store = open_store(tmp_path / "s.zarr")
    logits, labels = run_logits(runs / "s1", TEST)
    assert store.meta.class_names == ("1", "7", "9", "(rest)")
    assert store.labels.tolist() == labels.tolist()
    snapshot = store.snapshots["s1"]
    assert snapshot.logits(np.arange(597)) == pytest.approx(logits, abs=1e-2)
    assert snapshot.meta.top1 == (logits.argmax(1) == labels).mean()
    checked = run("verify", store.url, "--teacher", runs / "s1", "--data", TEST)
    assert checked.exit_code == 0, checked.output
    both = BuildConfig(
        teachers=[str(runs / "s1"), str(runs / "generalist")],
        data=TEST,
        out=str(tmp_path / "both.zarr"),
    )
    with pytest.raises(MismatchError, match="trained with other class maps"):
        build(both)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"specialist": "plan.json"}, InputError, r"expected FILE\.json:NAME"),
        ({"specialist": "plan.json:"}, InputError, r"expected FILE\.json:NAME"),
        ({"store": "s.zarr"}, InputError, "--specialist with --store"),
        ({"omit_classes": (7,)}, InputError, "--omit-class with --specialist"),
        ({"method": "kd"}, InputError, "--specialist with --method kd"),
        ({"method": "ps-kd"}, InputError, "--specialist with --method ps-kd"),
    ],
)
def test_a_specialist_that_contradicts_itself_is_refused(
    change: dict[str, Any], error: type[LogitstoreError], says: str
) -> None:
    base = TrainConfig(data=DATA, student="mlp", specialist="plan.json:s1", out="run")
    with pytest.raises(error, match=says):
        replace(base, **change)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"specialist": "nowhere.json:s1"}, NotFound, r"nowhere\.json: there is no such plan"),
        ({"limit": 3}, InputError, "no sample of class .* is left for this specialist"),
        ({"init": "nowhere"}, NotFound, "nowhere"),
        ({"student": "mlp?hidden=12"}, InputError, "does not fit"),
    ],
)
def test_a_specialist_that_cannot_be_trained_is_refused_before_any_work(
    runs: Path, tmp_path: Path, change: dict[str, Any], error: type[LogitstoreError], says: str
) -> None:
    with pytest.raises(error, match=says):
        train(special(runs, **{"out": str(tmp_path / "run"), **change}))
    assert not (tmp_path / "run").exists()


def test_an_unknown_specialist_is_answered_with_the_known_ones(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="known: s1, s2"):
        train(special(runs, "s3", out=str(tmp_path / "run")))
