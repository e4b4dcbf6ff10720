"""Number a dataset's classes as the student's outputs are numbered: by name, or by a class map.

The store decides the numbering; without one the training data do.  Nothing here knows of samples.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import InputError, MismatchError, NotFound, UnknownName
from logitstore.precompute.data.images import ImageDataset, check_labels

ClassMap = Mapping[str, str | int]
"""From a dataset class's name or number, as text, to a store class's name or number."""

_EXPECTED = 'expected a JSON object such as {"kitten": "cat", "1": 7}'

_NUMBER = "[0-9]{1,9}"
"""A class's number as text."""

MAP_IT = "say which class is which with --class-map FILE"
"""The way out that an error names."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The numbering to follow, that of ``owner``: ``count`` classes, and their names if known."""

    owner: str
    count: int
    names: tuple[str, ...] | None


def read_class_map(path: str | None) -> ClassMap | None:
    """Read a class map, a JSON object from a dataset's classes to a store's; None without a path.

    Keys are a dataset class's name or its number as text, values a store class's name or number.
    Raises NotFound, or InputError for any other content.
    """
    if path is None:
        return None
    try:
        mapping = json.loads(Path(path).read_text(), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable class map ({error}): {_EXPECTED}") from None
    if not isinstance(mapping, dict):
        raise InputError(f"{path}: not a class map but a {type(mapping).__name__}: {_EXPECTED}")
    for key, value in mapping.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(f"{path}: {key!r} leads to {value!r}, no name or number: {_EXPECTED}")
    return mapping


def renumbered(
    dataset: ImageDataset,
    classes: Classes,
    class_map: ClassMap | None = None,
    *,
    remedy: str = MAP_IT,
) -> ImageDataset:
    """Return the dataset with its labels in the numbering of ``classes``.

    Equal names, or no names on a side and as many classes, change nothing.  Other names are looked
    up: fewer, or in another order, are fine.  A map goes before names; it must hold every class
    that occurs in the labels; entries for others are unused, so that one map can serve training
    and validation data.  Several classes may lead to one.  MismatchError names the first class
    that has no place and ends with ``remedy``, InputError the first entry that cannot be used.
    """
    if class_map is None:
        numbers = _by_name(dataset, classes, remedy)
    else:
        numbers = _by_map(dataset, classes, class_map)
    if numbers is None:
        check_labels(dataset, classes.count)
        names = classes.names or dataset.class_names
        return replace(dataset, classes=classes.count, class_names=names)
    labels = np.where(dataset.labels < 0, np.int32(-1), numbers[dataset.labels])
    return replace(dataset, labels=labels, classes=classes.count, class_names=classes.names)


def map_for(dataset: ImageDataset, class_map: ClassMap | None) -> ClassMap | None:
    """Return a run's class map if it names classes of these data, else None.

    It was made for the training data; validation data may have their names or the store's own.
    """
    names = dataset.class_names
    if class_map is None or names is None:
        return class_map
    names_them = any(key in names or re.fullmatch(_NUMBER, key) for key in class_map)
    return class_map if names_them else None


def _by_name(dataset: ImageDataset, classes: Classes, remedy: str) -> NDArray[np.int32] | None:
    """Return the new number of each of the dataset's classes, or None if all stay as they are."""
    ours, theirs = dataset.class_names, classes.names
    if ours is None or theirs is None:
        if dataset.classes not in (None, classes.count):
            raise MismatchError(
                f"{classes.owner} has {classes.count} classes, the dataset {dataset.name} has "
                f"{dataset.classes}, and names do not tell which is which: use the same classes, "
                f"or {remedy}"
            )
        return None
    if ours == theirs:
        return None
    of_data, of_owner = _places(ours), _places(theirs)
    for name in ours:
        if name not in of_owner:
            raise MismatchError(
                f"{dataset.name} has a class {name!r}, {classes.owner} has none of that name "
                f"({_nearest(name, theirs)}): use its names, or {remedy}"
            )
        if len(of_data[name]) > 1 or len(of_owner[name]) > 1:
            raise MismatchError(
                f"two classes of {dataset.name} or of {classes.owner} are named {name!r}: rename "
                f"one, or {remedy}, by number"
            )
    return np.array([of_owner[name][0] for name in ours], np.int32)


def _by_map(
    dataset: ImageDataset, classes: Classes, class_map: ClassMap
) -> NDArray[np.int32] | None:
    """Return the new number of each of the dataset's classes, -1 for one that no label has."""
    count = dataset.class_count
    check_labels(dataset, count)
    of_data, of_owner = _places(dataset.class_names or ()), _places(classes.names or ())
    numbers = np.full(count, -1, np.int32)
    for key, value in class_map.items():
        new = _number(value, of_owner, classes.count, classes.owner)
        if new is None:
            raise InputError(
                f"class map: {key!r} leads to {value!r}, and {classes.owner} has no class of that "
                f"name or number ({_nearest(str(value), classes.names or ())}; numbers: "
                f"0..{classes.count - 1}): correct --class-map"
            )
        old = _number(key, of_data, count, dataset.name)
        if old is None:
            continue
        if numbers[old] not in (-1, new):
            raise InputError(
                f"class map: {key!r} is class {old} of {dataset.name}, which has another entry "
                f"that leads to class {numbers[old]}: keep one of them in --class-map"
            )
        numbers[old] = new
    _refuse_gaps(dataset, numbers, class_map)
    return None if np.array_equal(numbers, np.arange(classes.count)) else numbers


def _refuse_gaps(dataset: ImageDataset, numbers: NDArray[np.int32], class_map: ClassMap) -> None:
    occurring = np.flatnonzero(np.bincount(dataset.labels[dataset.labels >= 0]))
    missing = [int(number) for number in occurring if numbers[number] < 0]
    if missing:
        first = dataset.class_names[missing[0]] if dataset.class_names else str(missing[0])
        raise InputError(
            f"class map: class {first!r} of {dataset.name} has no entry ({len(missing)} of "
            f"{len(occurring)} classes have none; {_nearest(first, list(class_map))}): add it to "
            "--class-map"
        )


def _number(name: str | int, places: dict[str, list[int]], count: int, owner: str) -> int | None:
    """Return a class's number by its name, or else by the number itself; None if there is none."""
    if isinstance(name, str):
        numbers = places.get(name, [])
        if len(numbers) > 1:
            raise InputError(
                f"{name!r} is the name of classes {numbers[0]} and {numbers[1]} of {owner}: give "
                "the number of one"
            )
        if numbers:
            return numbers[0]
        if not re.fullmatch(_NUMBER, name):
            return None
    return int(name) if 0 <= int(name) < count else None


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the classes of each name."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(number)
    return places


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return "closest: 'a', 'b'", or the first few names."""
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    listed = ", ".join(repr(entry) for entry in close or known[:5])
    if close:
        return f"closest: {listed}"
    return f"known: {listed or 'no names'}{', …' if len(known) > 5 else ''}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{key!r} stands twice")
    return dict(pairs)


def class_numbers(
    classes: Sequence[str | int], names: Sequence[str] | None, count: int, owner: str
) -> list[int]:
    """Return the numbers, each once, of classes given by name or number; names come first.

    UnknownName for a class that ``owner`` does not have, InputError for a name of several.
    """
    places = _places(names or ())
    numbers: dict[int, None] = {}
    for name in classes:
        number = _number(name, places, count, owner)
        if number is None:
            known = names or [str(number) for number in range(count)]
            raise UnknownName.among(f"class of {owner}", str(name), known)
        numbers[number] = None
    return list(numbers)
