"""A generalist and its specialists as one teacher: the rule, and the snapshot that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from logitstore.derive import combine as rule
from logitstore.derive.combine import (
    Member,
    Specialist,
    combine,
    combined_rows,
    dustbin_shift,
    least_kl,
)
from logitstore.derive.specialists import Cluster, SpecialistPlan, write_plan
from logitstore.derive.transcode import transcode
from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import Samples, SnapshotMeta
from logitstore.format.choice import EncodingRequest
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.reading.continued import Continued
from logitstore.reading.opening import open_store
from logitstore.reading.verify import verify_store
from logitstore.storage import open_storage
from logitstore.trainer import TrainConfig, train
from logitstore.writing.target import Target
from tests.support.commands import refused, run
from tests.support.stores import tree

Build = Callable[..., Path]
Floats = NDArray[np.float64]
DATA = "digits?samples=0:300"
GROUPS = {"s1": (1, 7, 9), "s2": (3, 8)}
OVERLAPPING = ([0, 1, 2], [0, 3, 4], [0, 2, 5])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of a generalist and two specialists, their plan, and their stores."""
    place = tmp_path_factory.mktemp("combine")
    general = place / "general"
    common: dict[str, Any] = {"data": DATA, "student": "mlp?hidden=24", "batch_size": 32}
    train(TrainConfig(**common, epochs=4, out=str(general), device="cpu"))
    build(BuildConfig(teachers=[str(general)], data=DATA, out=str(place / "g.zarr")))
    labels = open_store(place / "g.zarr").labels
    plan = SpecialistPlan(
        snapshot="general",
        generalist=open_store(place / "g.zarr").snapshots["general"].root,
        classes=10,
        class_names=tuple("0123456789"),
        clusters=2,
        seed=0,
        n_init=10,
        specialists=tuple(
            Cluster(name=name, classes=group, share=float(np.isin(labels, group).mean()))
            for name, group in GROUPS.items()
        ),
    )
    write_plan(plan, place / "plan.json")
    for name in GROUPS:
        chosen = {"init": str(general), "specialist": f"{place}/plan.json:{name}"}
        train(TrainConfig(**common, **chosen, epochs=6, out=str(place / name), device="cpu"))
        build(BuildConfig(teachers=[str(place / name)], data=DATA, out=f"{place}/{name}.zarr"))
    return place


def command(place: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (
        *("combine", "--generalist", f"{place}/g.zarr::general"),
        *("--specialists", place / "plan.json", place / "s2.zarr", place / "s1.zarr"),
        *("--out", out, "--snapshot", "both", *more),
    )


def some(rows: int, classes: int, scale: float = 2.0, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, classes)) * scale


def members(sets: tuple[list[int], ...], rows: int, scale: float = 2.0) -> list[Member]:
    return [
        Member(np.array(own), log_softmax(some(rows, len(own) + 1, scale, 7 + n), axis=1))
        for n, own in enumerate(sets)
    ]


def objective(log_q: Floats, log_p: Floats, asked: list[tuple[Any, Floats]]) -> float:
    """The paper's sum of divergences for one row, (C,), as it is written there."""
    value = np.exp(log_p) @ (log_p - log_q)
    for own, theirs in asked:
        rest = np.setdiff1d(np.arange(len(log_q)), own)
        seen = np.append(log_q[own], logsumexp(log_q[rest]))
        value += np.exp(theirs) @ (theirs - seen)
    return float(value)


@pytest.mark.parametrize("sets", [OVERLAPPING[:1], OVERLAPPING[:2], OVERLAPPING])
def test_no_other_distribution_has_a_smaller_divergence(sets: tuple[list[int], ...]) -> None:
    log_p = log_softmax(some(6, 8), axis=1)
    asked = members(sets, 6)
    found = least_kl(np.exp(log_p), asked)
    assert found.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-12)
    for row in range(6):
        terms = [(own, theirs[row]) for own, theirs in asked]
        best = minimize(
            lambda z, row=row, terms=terms: objective(log_softmax(z), log_p[row], terms),
            log_p[row],
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000},
        )
        ours = objective(np.log(found[row]), log_p[row], terms)
        assert ours <= best.fun + 1e-12
        assert found[row] == pytest.approx(softmax(best.x), abs=1e-5)


def test_the_divergence_falls_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    log_p = log_softmax(some(1, 8, 4.0), axis=1)
    asked = members(OVERLAPPING, 1, 4.0)
    terms = [(own, theirs[0]) for own, theirs in asked]
    values = [objective(log_p[0], log_p[0], terms)]
    for rounds in range(1, 12):
        monkeypatch.setattr(rule, "MOST_ROUNDS", rounds)
        q = least_kl(np.exp(log_p), asked)[0]
        values.append(objective(np.log(q), log_p[0], terms))
    assert (np.diff(values) < 0).all()


def test_one_specialist_is_the_mean_of_two_opinions() -> None:
    """By hand: within its classes the mean, outside the generalist's proportions."""
    p = softmax(some(5, 6), axis=1)
    (member,) = members(([1, 4],), 5)
    q, theirs = least_kl(p, [member]), np.exp(member.log_p)
    assert q[:, [1, 4]] == pytest.approx((p[:, [1, 4]] + theirs[:, :2]) / 2, abs=1e-12)
    rest = [0, 2, 3, 5]
    mass = (p[:, rest].sum(axis=1) + theirs[:, 2]) / 2
    expected = p[:, rest] * (mass / p[:, rest].sum(axis=1))[:, None]
    assert q[:, rest] == pytest.approx(expected, rel=1e-9)


def test_specialists_that_agree_with_the_generalist_change_nothing() -> None:
    logits = some(40, 8, 3.0)
    p = softmax(logits, axis=1)
    asked = []
    for own in OVERLAPPING:
        rest = np.setdiff1d(np.arange(8), own)
        seen = np.column_stack([p[:, own], p[:, rest].sum(axis=1)])
        asked.append(Member(np.array(own), np.log(seen)))
    assert least_kl(p, asked) == pytest.approx(p, rel=1e-9)
    assert least_kl(p, []) == pytest.approx(p, rel=1e-15)
    found = combined_rows(logits.astype(np.float32), asked)
    assert found == pytest.approx(log_softmax(logits, axis=1), abs=1e-5)


def test_only_specialists_of_the_best_class_are_asked() -> None:
    logits = some(60, 8, 3.0).astype(np.float32)
    asked = members(([1, 2], [3, 4, 5]), 60)
    found = combined_rows(logits, asked)
    best = logits.argmax(axis=1)
    alone = log_softmax(logits.astype(np.float64), axis=1)
    nobodys = np.isin(best, (0, 6, 7))
    assert nobodys.any()
    assert found[nobodys] == pytest.approx(alone[nobodys], abs=1e-6)
    for member in asked:
        rows = np.flatnonzero(np.isin(best, member.classes))
        by_one = least_kl(np.exp(alone[rows]), [Member(member.classes, member.log_p[rows])])
        assert np.exp(found[rows]) == pytest.approx(by_one, rel=1e-5)
        assert np.abs(np.exp(found[rows]) - np.exp(alone[rows])).max() > 0.1


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([[0.0, -900.0, -1500.0, 5.0], [2000.0, 0.0, 0.0, 0.0]], np.float32)
    asked = [Member(np.array([0, 3]), log_softmax([[900.0, 0.0, -900.0]] * 2, axis=1))]
    found = combined_rows(logits, asked)
    assert np.isfinite(found).all()
    assert np.exp(found.astype(np.float64)).sum(axis=1) == pytest.approx([1, 1])


def test_the_dustbin_is_corrected_as_told() -> None:
    cluster = Cluster(name="s", classes=(0, 1), share=0.2)
    assert dustbin_shift(cluster, "share") == pytest.approx(np.log(2.5))
    assert dustbin_shift(cluster, "odds") == pytest.approx(np.log(4))


def test_the_exact_odds_undo_training_on_half_special_samples() -> None:
    """Bayes: the specialist's posterior under its own priors, corrected, is the true one."""
    rng = np.random.default_rng(3)
    density, prior = rng.random((50, 5)), np.array([0.1, 0.15, 0.25, 0.2, 0.3])
    own, rest = [0, 1], [2, 3, 4]
    share = prior[own].sum()
    seen = np.concatenate([prior[own] * 0.5 / share, prior[rest] * 0.5 / (1 - share)])
    trained = density * seen
    outputs = np.log(np.column_stack([trained[:, :2], trained[:, 2:].sum(axis=1)]))
    outputs[:, -1] += dustbin_shift(Cluster(name="s", classes=(0, 1), share=share), "odds")
    true = density * prior
    expected = np.column_stack([true[:, :2], true[:, 2:].sum(axis=1)])
    expected /= expected.sum(axis=1, keepdims=True)
    assert softmax(outputs, axis=1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dustbin", ["share", "odds"])
def test_the_snapshot_holds_what_the_rule_says(dustbin: str, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    done = run(*command(place, out, "--dustbin", dustbin, "--encoding", "float32"))
    assert done.exit_code == 0, done.output
    store = open_store(out)
    snapshot = store.snapshots["both"]
    general = open_store(place / "g.zarr")
    logits = general.snapshots["general"].logits(np.arange(300)).astype(np.float64)
    expected = softmax(logits, axis=1)
    asked = 0
    for name, group in GROUPS.items():
        opened = open_store(place / f"{name}.zarr")
        theirs = opened.snapshots[name].logits(np.arange(300)).astype(np.float64)
        share = np.isin(general.labels, group).mean()
        theirs[:, -1] += np.log((0.5 if dustbin == "share" else 1 - share) / share)
        m, own = softmax(theirs, axis=1), list(group)
        rest = np.setdiff1d(np.arange(10), own)
        for row in np.flatnonzero(np.isin(logits.argmax(1), own)):
            p, asked = expected[row].copy(), asked + 1
            expected[row, own] = (p[own] + m[row, :-1]) / 2
            expected[row, rest] = p[rest] * (1 + m[row, -1] / p[rest].sum()) / 2
    assert asked > 100
    found = snapshot.logits(np.arange(300)).astype(np.float64)
    assert np.exp(found) == pytest.approx(expected, abs=1e-6)
    assert snapshot.meta.top1 == (expected.argmax(1) == general.labels).mean()
    assert snapshot.meta.top1 > general.snapshots["general"].meta.top1


def test_the_snapshot_says_what_it_was_made_from(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    assert run(*command(place, out)).exit_code == 0
    general = open_store(place / "g.zarr").snapshots["general"]
    meta = open_store(out).snapshots["both"].meta
    assert (meta.teacher, meta.view) == (general.meta.teacher, general.meta.view)
    assert meta.combined is not None
    assert meta.combined.generalist == general.root
    assert [(each.name, each.root) for each in meta.combined.specialists] == [
        (name, open_store(place / f"{name}.zarr").snapshots[name].root) for name in GROUPS
    ]
    assert meta.combined.dustbin == "share"
    said = run("inspect", out)
    assert f"generalist root {general.root}" in said.output
    assert json.loads(run("inspect", out, "--json").stdout)["snapshots"][0]["combined"]
    assert verify_store(str(out)).ok
    text = refused("verify", out, "--teacher", place / "general", "--data", DATA)
    assert "combines several networks" in text


def test_other_snapshots_are_written_as_ever(place: Path) -> None:
    """Their bytes, and so their roots, do not know that others are combined."""
    document = json.loads((place / "g.zarr/snapshots/general/zarr.json").read_bytes())
    assert "combined" not in document["attributes"]["logitstore"]
    assert SnapshotMeta.parse("here", document["attributes"]["logitstore"]).combined is None


def test_a_combined_snapshot_teaches_like_any_other(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    assert run(*command(place, out)).exit_code == 0
    config: dict[str, Any] = {"data": DATA, "student": "mlp?hidden=24", "device": "cpu"}
    result = train(
        TrainConfig(
            **config,
            store=str(out),
            snapshot="both",
            method="kd",
            epochs=15,
            lr=0.2,
            batch_size=32,
            out=str(tmp_path / "run"),
        )
    )
    assert result.metrics["train_kd_error"] < 0.2
    other = {**config, "data": "digits?samples=300:600", "out": str(tmp_path / "x")}
    with pytest.raises(MismatchError):
        train(TrainConfig(**other, store=str(out), snapshot="both", method="kd"))


def test_an_interrupted_combination_ends_in_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    class Stopping:
        seen = 0

        def start(self, *_: object) -> None: ...
        def message(self, *_: object) -> None: ...
        def advance(self, count: int) -> None:
            self.seen += count
            if self.seen > 100:
                raise Stop

    monkeypatch.setattr("logitstore.writing.plan.shard_rows", lambda bytes_per_row: 64)
    general, plan = open_store(place / "g.zarr"), rule_plan(place)
    theirs = [opened(place / f"{name}.zarr", name) for name in GROUPS]
    given = (general, general.snapshots["general"], plan, theirs)
    combine(*given, str(tmp_path / "whole.zarr"), "both", EncodingRequest())
    out = tmp_path / "c.zarr"
    with pytest.raises(Stop):
        combine(*given, str(out), "both", EncodingRequest(), progress=Stopping())
    assert not (out / "snapshots/both/commit.json").exists()
    with pytest.raises(MismatchError, match=r"begun differently: combined\.dustbin"):
        combine(*given, str(out), "both", EncodingRequest(), dustbin="odds")
    combine(*given, str(out), "both", EncodingRequest())
    assert tree(out) == tree(tmp_path / "whole.zarr")


def flips(folder: Path) -> str:
    """A view spec that small images can have."""
    path = folder / "flips.json"
    path.write_text('[{"name": "RandomHorizontalFlip", "p": 0.5}]')
    return str(path)


def rule_plan(place: Path) -> SpecialistPlan:
    return SpecialistPlan.parse("plan", (place / "plan.json").read_bytes())


def opened(path: Path, name: str) -> Specialist:
    store = open_store(path)
    return Specialist(store, store.snapshots[name])


def test_the_same_command_into_the_generalists_store_finds_its_work_done(
    place: Path, tmp_path: Path
) -> None:
    build(BuildConfig(teachers=[str(place / "general")], data=DATA, out=str(tmp_path / "g.zarr")))
    path = tmp_path / "g.zarr"
    again = (
        *("combine", "--generalist", path, "--specialists", place / "plan.json"),
        *(place / "s1.zarr", "--out", path, "--snapshot", "both"),
    )
    assert run(*again).exit_code == 0
    before = tree(path)
    done = run(*again)
    assert done.exit_code == 0, done.output
    assert tree(path) == before
    assert sorted(open_store(path).snapshots) == ["both", "general"]
    assert "built differently" in refused(*again, "--dustbin", "odds")


def test_stores_that_do_not_belong_together_are_refused(place: Path, tmp_path: Path) -> None:
    def built(name: str, data: str = DATA, **more: Any) -> Path:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        build(BuildConfig(teachers=[str(place / name)], data=data, out=str(out), **more))
        return out

    def says(*stores: object, generalist: object = place / "g.zarr") -> str:
        return refused(
            *("combine", "--generalist", generalist, "--specialists", place / "plan.json"),
            *(*stores, "--out", tmp_path / "c.zarr", "--snapshot", "both"),
        )

    assert "200 rows there, 1 x 300 here" in says(built("s1", "digits?samples=0:200"))
    assert "is another one there than here" in says(built("s1", "digits?samples=300:600"))
    flipped = built("s1", view_spec=flips(tmp_path))
    assert "the views' spec" in says(flipped)
    assert "are no specialist's of the plan (1, 7, 9, (rest); 3, 8, (rest))" in says(
        place / "g.zarr"
    )
    assert "are both of specialist 's1'" in says(place / "s1.zarr", place / "s1.zarr")
    assert "give the generalist's store" in says(place / "s2.zarr", generalist=place / "s1.zarr")
    topk = built("s1", encoding="topk:2")
    assert "kept as topk" in says(topk)
    assert "did you mean 'general'" in says(place / "s1.zarr", generalist=f"{place}/g.zarr::genral")
    both = tmp_path / "both.zarr"
    assert run(*command(place, both)).exit_code == 0
    text = refused(
        *("combine", "--generalist", both, "--specialists", place / "plan.json"),
        *(place / "s1.zarr", "--out", tmp_path / "c.zarr", "--snapshot", "again"),
    )
    assert "is itself combined" in text
    assert "name 'a/b' is not usable" in refused(*command(place, tmp_path / "c.zarr")[:-1], "a/b")
    assert not (tmp_path / "c.zarr").exists()
    general, plan = open_store(place / "g.zarr"), rule_plan(place)
    with pytest.raises(InputError, match="no specialist's store"):
        combine(general, general.snapshots["general"], plan, [], "x", "both", EncodingRequest())


def test_imported_rows_cannot_be_told_to_be_of_the_same_images(place: Path, tmp_path: Path) -> None:
    logits, labels = tmp_path / "l.npy", tmp_path / "y.npy"
    general = open_store(place / "g.zarr")
    np.save(logits, general.snapshots["general"].logits(np.arange(300)))
    np.save(labels, general.labels)
    path = tmp_path / "i.zarr"
    given = ("import", logits, "--labels", labels, "--out", path, "--snapshot", "general")
    assert run(*given).exit_code == 0
    plan = rule_plan(place).model_copy(update={"class_names": None})
    store = open_store(path)
    nameless = store.snapshots["general"]
    theirs = opened(place / "s1.zarr", "s1")
    with pytest.raises(MismatchError, match="one was imported"):
        combine(store, nameless, plan, [theirs], str(tmp_path / "c"), "b", EncodingRequest())


def test_a_combined_snapshot_can_be_transcoded_and_keeps_its_card(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.zarr"
    assert run(*command(place, out)).exit_code == 0
    store = open_store(out)
    both = store.snapshots["both"]
    transcode(store, both, str(tmp_path / "t.zarr"), EncodingRequest(text="uint8"))
    again = open_store(tmp_path / "t.zarr").snapshots["both"].meta
    assert again.combined == both.meta.combined
    assert again.transcoded is not None
    assert again.transcoded.root == both.root


def test_views_of_a_combined_teacher_are_not_continued_by_a_plain_one(
    place: Path, tmp_path: Path
) -> None:
    views: dict[str, Any] = {"data": DATA, "view_spec": flips(tmp_path), "views": 1}
    plain, special = tmp_path / "g.zarr", tmp_path / "s1.zarr"
    for first in (0, 1):
        for name, path in (("general", plain), ("s1", special)):
            config = {"teachers": [str(place / name)], "out": str(path), "first_view": first}
            build(BuildConfig(**views, **config))

    def combined(suffix: str) -> None:
        done = run(
            *("combine", "--generalist", f"{plain}::general{suffix}", "--out", plain),
            *("--specialists", place / "plan.json", f"{special}::s1{suffix}"),
            *("--snapshot", f"both{suffix}"),
        )
        assert done.exit_code == 0, done.output

    combined("")
    combined("-view1")
    found = open_store(plain).snapshots
    joined = Continued([found["both"], found["both-view1"]])
    assert joined.meta.views == 2
    # What goes on with the teacher's own views is the teacher alone.
    store = open_store(plain)
    samples = Samples(store.meta.dataset.name, store.labels)
    target = Target.read(open_storage(plain), store.meta, samples)
    before = target.continued_by(found["general-view1"].meta)
    assert before is not None
    assert before.name == "general"
    with pytest.raises(MismatchError, match="combined with other specialists, or one"):
        Continued([found["both"], found["general-view1"]])
