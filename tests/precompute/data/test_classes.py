"""Classes are matched by name, or by a map; a student's outputs mean the same class everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.errors import InputError, LogitstoreError, MismatchError, NotFound
from logitstore.precompute.data.classes import Classes, map_for, read_class_map, renumbered
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.data.sources import open_dataset
from logitstore.reading.opening import open_store
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.data.align import align

ANIMALS = Classes(owner="the store", count=4, names=("ant", "bee", "cat", "dog"))
NAMELESS = replace(ANIMALS, names=None)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FACTORIES = """
from logitstore.precompute.data.sources import open_dataset

WORDS = {words!r}

class Digits:
    def __init__(self, span, order, names=WORDS):
        digits = open_dataset(f"digits?samples={{span}}")
        self.items = [digits.load(index) for index in range(len(digits))]
        self.targets = [order.index(int(label)) for label in digits.labels]
        self.classes = [names[label] for label in order]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index], self.targets[index]

UP, DOWN = list(range(10)), list(range(9, -1, -1))
def up(): return Digits("0:60", UP)
def down(): return Digits("0:60", DOWN)
def german(): return Digits("0:60", DOWN, [f"d{{n}}" for n in range(10)])
def test_up(): return Digits("60:120", UP)
def test_down(): return Digits("60:120", DOWN)
def test_german(): return Digits("60:120", DOWN, [f"d{{n}}" for n in range(10)])
"""


def labelled(labels: list[int], names: tuple[str, ...] | None, count: int | None = None) -> Any:
    return ImageDataset(
        name="here",
        labels=np.array(labels, np.int32),
        load=lambda index: index,
        classes=len(names) if names else count,
        class_names=names,
    )


@pytest.mark.parametrize(
    ("dataset", "classes", "class_map", "expected"),
    [
        (labelled([0, 3, -1], ("ant", "bee", "cat", "dog")), ANIMALS, None, [0, 3, -1]),
        (labelled([0, 3, -1], ("dog", "cat", "bee", "ant")), ANIMALS, None, [3, 0, -1]),
        (labelled([0, 1, 1], ("dog", "bee")), ANIMALS, None, [3, 1, 1]),
        (labelled([0, 3], None, 4), ANIMALS, None, [0, 3]),
        (labelled([0, 3], None), ANIMALS, None, [0, 3]),
        (labelled([0, 3], ("w", "x", "y", "z")), NAMELESS, None, [0, 3]),
        # a map goes before names, by name or number on either side, many to one, gaps unused
        (labelled([0, 1, 2], ("dog", "cat", "x")), ANIMALS, {"dog": "ant", "1": 2, "x": "0"}, None),
        (labelled([0, 1, -1], None, 2), ANIMALS, {"0": "dog", "1": "dog"}, [3, 3, -1]),
        (labelled([1, 1], ("wasp", "puppy")), NAMELESS, {"puppy": 3}, [3, 3]),
        (labelled([1, 1], ("wasp", "puppy")), ANIMALS, {"puppy": "dog", "kitten": "cat"}, [3, 3]),
        # a name that looks like a number is a name first
        (labelled([0, 1], ("1", "0")), NAMELESS, {"0": 2, "1": 3}, [3, 2]),
    ],
)
def test_labels_follow_their_class(
    dataset: ImageDataset,
    classes: Classes,
    class_map: dict[str, str | int] | None,
    expected: list[int] | None,
) -> None:
    found = renumbered(dataset, classes, class_map)
    assert found.labels.tolist() == (expected or [0, 2, 0])
    assert found.labels.dtype == np.int32
    assert found.classes == 4
    if classes.names is not None:
        assert found.class_names == classes.names
    assert [found.load(index) for index in range(len(found))] == list(range(len(found)))


@pytest.mark.parametrize(
    ("dataset", "classes", "class_map", "error", "says"),
    [
        (
            labelled([0], ("ant", "bees")),
            ANIMALS,
            None,
            MismatchError,
            r"has a class 'bees', the store has none of that name \(closest: 'bee'\): use its "
            r"names, or say which class is which with --class-map FILE",
        ),
        (labelled([0], ("ant", "cow")), ANIMALS, None, MismatchError, r"known: 'ant', 'bee', 'cat"),
        (labelled([0], None, 5), ANIMALS, None, MismatchError, "4 classes, .* here has 5"),
        (labelled([0], None, 3), ANIMALS, None, MismatchError, "3, and names do not tell .*-map"),
        (labelled([0, 4], None), ANIMALS, None, InputError, "sample 1 has label 4, but there are"),
        (labelled([0], ("ant", "ant")), ANIMALS, None, MismatchError, "named 'ant': rename .*-map"),
        (labelled([0, 1], ("x", "y")), ANIMALS, {"x": "ant"}, InputError, "class 'y' of here has"),
        (labelled([0, 1], None, 2), ANIMALS, {"0": 0}, InputError, "class '1' .* has no entry"),
        (labelled([0], ("x",)), ANIMALS, {}, InputError, r"'x' .*\(1 of 1 classes have none"),
        (labelled([0], ("x",)), ANIMALS, {"y": "ant"}, InputError, "known: 'y'"),
        (labelled([0], ("x",)), ANIMALS, {"x": "and"}, InputError, "leads to 'and', .*'ant'"),
        (labelled([0], ("x",)), ANIMALS, {"x": 4}, InputError, r"leads to 4, .* numbers: 0\.\.3"),
        (labelled([0], ("x",)), ANIMALS, {"x": -1}, InputError, r"leads to -1"),
        (labelled([0], ("x",)), NAMELESS, {"x": "ant"}, InputError, "leads to 'ant', .*no names"),
        (labelled([0], ("x",)), ANIMALS, {"x": 1, "0": 2}, InputError, "'0' is class 0 .* class 1"),
        (
            labelled([0], ("x",)),
            replace(ANIMALS, names=("crane", "ant", "crane", "bee")),
            {"x": "crane"},
            InputError,
            "'crane' is the name of classes 0 and 2 of the store: give the number",
        ),
    ],
)
def test_a_class_without_a_place_is_refused_with_the_way_out(
    dataset: ImageDataset,
    classes: Classes,
    class_map: dict[str, str | int] | None,
    error: type[LogitstoreError],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        renumbered(dataset, classes, class_map)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a readable class map"),
        ("[" * 100_000, "not a readable class map"),
        ('[["x", "ant"]]', "not a class map but a list"),
        ('{"x": ["ant"]}', r"'x' leads to \['ant'\], no name or number"),
        ('{"x": {"ant": 1}}', "'x' leads to"),
        ('{"x": 1.0}', r"'x' leads to 1\.0"),
        ('{"x": true}', "'x' leads to True"),
        ('{"x": null}', "'x' leads to None"),
        ('{"x": "ant", "x": "bee"}', "'x' stands twice"),
    ],
)
def test_a_file_that_is_no_class_map_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(InputError, match=says):
        read_class_map(str(tmp_path / "map.json"))
    with pytest.raises(InputError, match="not a readable class map"):
        read_class_map(str(tmp_path))
    with pytest.raises(NotFound, match="there is no such file"):
        read_class_map(str(tmp_path / "none.json"))


def test_a_run_s_map_holds_for_data_with_its_classes_and_not_for_the_store_s_own_names() -> None:
    swapped = {"ant": "bee", "bee": "ant"}
    named, nameless = labelled([0], ("ant", "cat")), labelled([0], None, 4)
    assert map_for(named, swapped) == swapped
    assert map_for(named, {"wasp": "bee"}) is None
    assert map_for(named, {"wasp": "bee", "1": 2}) == {"wasp": "bee", "1": 2}
    assert map_for(nameless, {"wasp": "bee"}) == {"wasp": "bee"}
    assert map_for(named, None) is None


@pytest.fixture
def config(tmp_path: Path, bound_store: Callable[..., Path]) -> TrainConfig:
    """A run from a store over 60 digits, its classes zero, one, …; ``data.py`` has them renamed."""
    (tmp_path / "data.py").write_text(FACTORIES.format(words=WORDS))
    up = f"{tmp_path}/data.py:up"
    logits = 3 * np.random.default_rng(0).standard_normal((1, 60, 10)).astype(np.float32)
    return TrainConfig(
        data=up,
        val=up.replace(":up", ":test_up"),
        student="mlp?hidden=32",
        store=str(bound_store(tmp_path / "s.zarr", up, logits)),
        method="kd",
        ce_weight=1.0,
        kd_weight=0.1,
        epochs=8,
        batch_size=16,
        lr=0.2,
        out=str(tmp_path / "up"),
        device="cpu",
        workers=0,
    )


def test_classes_in_another_order_give_the_same_weights_and_the_same_accuracy(
    config: TrainConfig, tmp_path: Path
) -> None:
    first = train(config)
    assert first.metrics["val_accuracy"] > 0.5  # so that wrongly numbered labels would show
    spec = f"{tmp_path}/data.py"
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({f"d{number}": word for number, word in enumerate(WORDS)}))
    german = {"data": f"{spec}:german", "val": f"{spec}:test_german"}
    for name, change in {
        "down": {"data": f"{spec}:down"},
        "both": {"data": f"{spec}:down", "val": f"{spec}:test_down"},
        "mapped": {**german, "class_map": str(mapping)},
        "mixed": {"data": f"{spec}:german", "class_map": str(mapping)},
    }.items():
        result = train(replace(config, **change, out=str(tmp_path / name)))
        assert result.metrics == first.metrics
        weights = [Path(run) / "model.safetensors" for run in (config.out, tmp_path / name)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    mapping.unlink()  # the run remembers it
    for run, data in (
        ("up", "test_up"),
        ("up", "test_down"),
        ("down", "test_down"),
        ("mapped", "test_german"),
        ("mapped", "test_down"),  # named as the store is: the map does not speak of it
    ):
        measured = evaluate(tmp_path / run, f"{spec}:{data}", device="cpu")
        assert measured["top1"] == first.metrics["val_accuracy"]
    with pytest.raises(MismatchError, match=r"has a class 'd9', .*--class-map FILE"):
        evaluate(config.out, german["val"], device="cpu")
    with pytest.raises(MismatchError, match=r"has a class 'd9', .*--class-map FILE"):
        train(replace(config, **german, out=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_renumbered_labels_are_noted(config: TrainConfig) -> None:
    assert config.store is not None
    store = open_store(config.store)
    down = open_dataset(config.data.replace(":up", ":down"))
    aligned = align(down, store)
    assert np.array_equal(aligned.dataset.labels, store.labels)
    assert not np.array_equal(down.labels, store.labels)
    (note,) = aligned.notes
    assert note.endswith("labels are renumbered into the store's classes, by name")
    with pytest.raises(MismatchError, match="sample 0 has label"):
        align(replace(down, class_names=None), store)
    by_number = {str(9 - number): number for number in range(10)}
    mapped = align(replace(down, class_names=None), store, class_map=by_number)
    assert np.array_equal(mapped.dataset.labels, store.labels)
    assert mapped.notes[0].endswith("by --class-map")


def test_a_run_without_a_store_numbers_its_validation_data_as_its_own(
    config: TrainConfig, tmp_path: Path
) -> None:
    plain = replace(
        config, store=None, method="ce", ce_weight=None, kd_weight=None, out=str(tmp_path / "plain")
    )
    first = train(plain)
    other = replace(plain, val=str(plain.val).replace("_up", "_down"), out=str(tmp_path / "other"))
    assert train(other).metrics == first.metrics
    with pytest.raises(MismatchError, match="or validate on data that have them"):
        train(replace(plain, val=str(plain.val).replace("_up", "_german"), out=str(tmp_path / "n")))


def test_a_store_of_another_numbering_is_no_measure_of_a_run(
    config: TrainConfig, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    plain = replace(config, store=None, method="ce", ce_weight=None, kd_weight=None, epochs=1)
    train(plain)
    down = config.data.replace(":up", ":down")
    other = bound_store(tmp_path / "down.zarr", down, np.zeros((1, 60, 10), np.float32))
    with pytest.raises(MismatchError, match="number their classes differently"):
        evaluate(config.out, config.data, store=str(other), device="cpu")
    weights = tmp_path / "apart.safetensors"
    weights.write_bytes((tmp_path / "up/model.safetensors").read_bytes())
    with pytest.raises(InputError, match="drop --class-map, or give --store"):
        evaluate(weights, config.data, student="mlp?hidden=32", class_map="m.json", device="cpu")
