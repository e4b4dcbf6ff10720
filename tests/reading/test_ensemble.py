"""Several teachers as one: the mean of logits or of distributions, checked by other arithmetic."""

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
from torch.utils.data import DataLoader

from logitstore.cache.cache import Cache
from logitstore.cache.prepare import prepare_readings
from logitstore.errors import InputError, MismatchError, UnknownName
from logitstore.format.encodings.dense import Float32
from logitstore.format.encodings.rows import Rows
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.networks.factory import build_model
from logitstore.progress import Silent
from logitstore.reading.continued import Continued
from logitstore.reading.ensemble import Blend, Ensemble, Kind, leaves
from logitstore.reading.opening import open_store
from logitstore.reading.store import LogitStore
from logitstore.trainer import LogitDataset, TrainConfig, train, with_logits
from logitstore.trainer.data.batches import Batch
from logitstore.trainer.data.source import Request
from logitstore.trainer.run.parts import split_batch
from tests.support.stores import logits_of

SAMPLES, ARCH = 100, "mlp?hidden=8"
WANTED = [3, 99, 0, 41, 3]
SHAKE = [{"name": "RandomCrop", "size": 8, "padding": 2}]


@pytest.fixture(scope="module")
def store(tiny_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """Three teachers, logits known and kept exactly."""
    path = tmp_path_factory.mktemp("ensemble") / "s.zarr"
    return open_store(tiny_store(path, ("a", "b", "c"), views=2, form="float32"))


def truth(number: int, view: int = 0) -> NDArray[np.float64]:
    """What ``tiny_store`` gave snapshot a, b or c: float64 (samples, C)."""
    return logits_of(number, SAMPLES, 10, 2)[view].astype(np.float64)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def shaken(folder: Path) -> str:
    """A spec file of random views."""
    (folder / "shake.json").write_text(json.dumps(SHAKE))
    return str(folder / "shake.json")


@pytest.mark.parametrize("view", [0, 1])
def test_the_geometric_ensemble_is_the_weighted_mean_of_logits(
    store: LogitStore, view: int
) -> None:
    parts = [store.snapshots[name] for name in "abc"]
    found = Ensemble(parts, [1, 2, 5], "geometric").rows(WANTED, view)
    expected = ((truth(0, view) + 2 * truth(1, view) + 5 * truth(2, view)) / 8)[WANTED]
    np.testing.assert_allclose(found.logits(), expected, atol=2e-6)
    np.testing.assert_allclose(found.tensor().numpy(), expected, atol=2e-6)
    product = softmax(truth(0, view)) * softmax(truth(1, view)) ** 2 * softmax(truth(2, view)) ** 5
    product **= 1 / 8
    np.testing.assert_allclose(
        softmax(found.logits()), (product / product.sum(1, keepdims=True))[WANTED], atol=1e-6
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_arithmetic_ensemble_has_the_mean_distribution_at_its_temperature(
    store: LogitStore, temperature: float
) -> None:
    parts = [store.snapshots[name] for name in "ab"]
    found = Ensemble(parts, [3, 1], "arithmetic", temperature).rows(WANTED)
    expected = (0.75 * softmax(truth(0), temperature) + 0.25 * softmax(truth(1), temperature))[
        WANTED
    ]
    for logits in (found.logits(), found.tensor().numpy()):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(softmax(logits, temperature), expected, rtol=2e-5)


def test_an_ensemble_of_one_or_of_equals_is_the_member(store: LogitStore) -> None:
    member = store.snapshots["a"]
    alone = Ensemble([member], [7.0], "geometric")
    assert np.array_equal(alone.logits(WANTED), member.logits(WANTED))
    assert torch.equal(alone.rows(WANTED).tensor(), member.rows(WANTED).tensor())
    for members in (1, 3):
        equal = Ensemble([member] * members, None, "arithmetic", 4.0)
        np.testing.assert_allclose(
            softmax(equal.logits(WANTED), 4), softmax(member.logits(WANTED), 4), atol=1e-6
        )


def test_distributions_far_apart_are_averaged_without_leaving_log_space() -> None:
    """Each member is certain of another class, by 400 nats: as probabilities all else is 0."""
    members = tuple(
        Rows(Float32(classes=3), {"codes": np.array([row], np.float32)})
        for row in ([400.0, 0.0, -400.0], [0.0, 400.0, -400.0])
    )
    blend = Blend(members=members, weights=(0.5, 0.5), temperature=1.0)
    expected = np.log(0.5) + np.array([[0.0, 0.0, -800.0 + np.log(2)]])
    np.testing.assert_allclose(blend.logits(), expected, rtol=1e-6)
    np.testing.assert_allclose(blend.tensor().numpy(), expected, rtol=1e-6)
    assert blend.tensor().isfinite().all()


def test_members_may_be_continued_views_and_lie_in_other_stores_local_or_served(
    store: LogitStore, tiny_store: Callable[..., Path], serve: Callable[..., Any], tmp_path: Path
) -> None:
    other = tiny_store(tmp_path / "o.zarr", ("b",), views=2, seed=1, form="uint8")
    server = serve(other)
    served = open_store(f"{server.url}/o").snapshots["b"]
    near, far = (
        Ensemble([store.snapshots["a"], part], None, "arithmetic", 2.0)
        for part in (open_store(other).snapshots["b"], served)
    )
    assert near.root == far.root
    assert [leaf.url for leaf in leaves(far, far)] == [store.url, served.url]
    assert np.array_equal(near.logits(WANTED, 1), far.logits(WANTED, 1))


def test_the_root_tells_ensembles_apart_by_all_that_decides_their_logits(
    store: LogitStore,
) -> None:
    a, b = store.snapshots["a"], store.snapshots["b"]
    different = [
        Ensemble([a, b], [1, 1], "geometric"),
        Ensemble([a, b], [1, 2], "geometric"),
        Ensemble([a], [1], "geometric"),
        Ensemble([a, b], [1, 1], "arithmetic", 1.0),
        Ensemble([a, b], [1, 1], "arithmetic", 4.0),
    ]
    assert len({entry.root for entry in different}) == 5
    assert Ensemble([a, b], [2, 2], "geometric").root == different[0].root
    assert Ensemble([a, b]).root == different[0].root
    assert different[0].meta.views == 2
    assert different[0].store_meta == store.meta


def test_members_that_do_not_belong_together_are_refused_naming_the_difference(
    store: LogitStore,
    tiny_store: Callable[..., Path],
    bound_store: Callable[..., Path],
    tmp_path: Path,
) -> None:
    a = store.snapshots["a"]
    for changes, says in (
        ({"samples": 90}, r"dataset\.length is 100 there and 90 here: build both from one dataset"),
        ({"classes": 7}, r"classes is 10 there and 7 here"),
        ({"views": 1}, r"views is 2 there and 1 here: build both with as many --views"),
    ):
        path = tiny_store(
            tmp_path / f"{next(iter(changes))}.zarr", ("x",), **{"views": 2, **changes}
        )
        with pytest.raises(
            MismatchError, match=rf"^x of .* cannot teach together with a of .*{says}"
        ):
            Ensemble([a, open_store(path).snapshots["x"]])
    data = "digits?train=true&samples=0:30"
    rows = np.zeros((1, 30, 10), np.float32)
    path = tmp_path / "digits.zarr"
    bound_store(path, data, rows, name="eval")
    bound_store(path, data, rows, name="shaken", view_spec=shaken(tmp_path))
    views = open_store(path).snapshots
    with pytest.raises(MismatchError, match=r"view\.spec .* one --view-spec"):
        Ensemble([views["eval"], views["shaken"]])


def test_bad_weights_kinds_and_temperatures_are_refused(store: LogitStore) -> None:
    parts = [store.snapshots["a"], store.snapshots["b"]]
    for arguments, says in (
        (([], None), "at least one member"),
        ((parts, [1.0]), "1 weights for 2 members"),
        ((parts, [1.0, 0.0]), "number above 0, not 0.0"),
        ((parts, [1.0, float("nan")]), "number above 0, not nan"),
        ((parts, None, "arithmetic"), "temperature above 0, not None"),
        ((parts, None, "arithmetic", -1.0), "temperature above 0, not -1.0"),
    ):
        with pytest.raises(InputError, match=says):
            Ensemble(*arguments)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="known: arithmetic, geometric"):
        Ensemble(parts, None, "harmonic")  # type: ignore[arg-type]


class Decodings(Silent):
    """What was decoded, in order."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def start(self, task: str, total: int, unit: str) -> None:
        self.tasks.append(task)


def test_each_stored_snapshot_is_decoded_once_however_often_it_teaches(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    opened = open_store(tiny_store(tmp_path / "s.zarr", ("a", "b"))).snapshots
    ensemble = Ensemble([opened["a"], opened["a"]])
    before = ensemble.logits(WANTED)
    seen = Decodings()
    readers = prepare_readings(
        [ensemble, opened["b"], opened["a"]], "materialise", Cache(tmp_path), seen
    )
    assert seen.tasks == ["decoding a", "decoding b"]
    of_both, of_b, of_a = (reader.copies for reader in readers)
    assert len({*of_both, *of_b, *of_a}) == 2
    assert of_both == of_a
    assert np.array_equal(readers[0].logits(WANTED), before)


@pytest.mark.parametrize(("kind", "rounding"), [("geometric", 0.0), ("arithmetic", 1e-5)])
def test_a_batch_of_an_ensemble_is_cut_like_any_other(
    store: LogitStore, kind: Kind, rounding: float
) -> None:
    """The mean of distributions to rounding: torch's logarithms depend on the batch's length."""
    members = [store.snapshots[name] for name in "abc"]
    rows = Ensemble(members, None, kind, 4.0).rows(np.arange(10))
    batch = Batch(Request(0, 0, 0, np.arange(10)), torch.zeros(10, 1, 2, 2), torch.arange(10), rows)
    parts = [part.teacher for part in split_batch(batch, 4)]
    assert [len(part) for part in parts if part is not None] == [4, 3, 3]
    means = [(part.logits(), part.tensor()) for part in parts if part is not None]
    assert np.array_equal(np.concatenate([mean for mean, _ in means]), rows.logits())
    together = torch.cat([mean for _, mean in means])
    torch.testing.assert_close(together, rows.tensor(), rtol=0, atol=rounding)


def test_own_loops_get_the_ensemble_s_logits_also_of_several_views_at_once(
    bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    data = "digits?train=true&samples=0:42"
    drawn = np.random.default_rng(0).standard_normal((2, 2, 42, 10)).astype(np.float32)
    for name, logits in zip("ab", drawn, strict=True):
        bound_store(tmp_path / "s.zarr", data, logits, name=name)
    opened = open_store(tmp_path / "s.zarr").snapshots
    ensemble = Ensemble([opened["a"], opened["b"]], [1, 3])
    dataset = LogitDataset(data, ensemble)

    def turning(items: list[Any]) -> Any:
        """Samples of a batch in views of their own, as workers that ran ahead give them."""
        index = torch.tensor([item.index for item in items])
        return {"index": index, "view": index % 2}

    for batch in with_logits(DataLoader(dataset, 8, shuffle=True, collate_fn=turning), ensemble):
        index, view = batch["index"].numpy(), batch["view"].numpy()
        expected = (drawn[0][view, index] + 3 * drawn[1][view, index]) / 4
        np.testing.assert_allclose(batch["teacher"].numpy(), expected, atol=1e-6)
    with pytest.raises(MismatchError, match="give both the same snapshot"):
        with_logits(DataLoader(dataset, 8), opened["a"])


def test_an_ensemble_of_equal_teachers_trains_the_student_that_one_of_them_trains(
    bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    data = "digits?train=true&samples=0:200"
    logits = np.random.default_rng(0).standard_normal((1, 200, 10)).astype(np.float32)
    path = tmp_path / "s.zarr"
    for name in ("a", "b"):
        bound_store(path, data, logits, name=name)
    plain = TrainConfig(
        data=data,
        student="mlp?hidden=8",
        store=str(path),
        snapshot="a",
        method="kd",
        epochs=2,
        out=str(tmp_path / "plain"),
        device="cpu",
    )
    results = [
        train(replace(plain, snapshot=text, out=str(tmp_path / str(number))))
        for number, text in enumerate(["a", "logits(a,b)", "mean(a,b*2)"])
    ]
    weights = [(result.run / "model.safetensors").read_bytes() for result in results]
    assert weights[1] == weights[0]
    assert results[2].metrics["loss_kd"] == pytest.approx(results[0].metrics["loss_kd"], rel=1e-5)


def test_continued_views_are_members_too(tmp_path: Path) -> None:
    """One teacher's four views built at once, and built as two snapshots that continue."""
    torch.save(build_model(ARCH, classes=10, shape=(1, 8, 8)).state_dict(), tmp_path / "t.pth")
    config = BuildConfig(
        teachers=[str(tmp_path / "t.pth")],
        arch=[ARCH],
        data="digits?samples=0:40",
        out=str(tmp_path / "s.zarr"),
        view_spec=shaken(tmp_path),
        encoding="float32",
        device="cpu",
    )
    for name, views, first in (("whole", 4, 0), ("half", 2, 0), ("rest", 2, 2)):
        build(replace(config, snapshots=[name], views=views, first_view=first))
    opened = open_store(config.out).snapshots
    ensemble = Ensemble([opened["whole"], Continued([opened["half"], opened["rest"]])])
    assert [leaf.name for leaf in leaves(ensemble)] == ["whole", "half", "rest"]
    for view in range(4):
        found, alone = (each.logits(range(40), view) for each in (ensemble, opened["whole"]))
        np.testing.assert_allclose(found, alone, atol=1e-6)
