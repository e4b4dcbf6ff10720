"""A document is measured before it is parsed, and refused at its first error (row B9: files)."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.attacks.forging import attributes, change, commit_again, make_store, python

OPEN = """
import sys
from pathlib import Path
import logitstore

def memory():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if "VmHWM" in l) >> 10

logitstore.open_store(sys.argv[1]).snapshots["teacher"].logits([0])
for place in sys.argv[1:]:
    before = memory()
    try:
        logitstore.open_store(place).snapshots["teacher"].logits([0])
    except logitstore.LogitstoreError:
        print(Path(place).name, "refused", memory() - before)
"""
MANY = 400_000
SNAPSHOT = "snapshots/teacher"


def fields(count: int) -> dict[str, int]:
    return {str(number): 0 for number in range(count)}


DOCUMENTS: dict[str, Callable[[Path], object]] = {
    "unknown fields": lambda store: change(
        store / "zarr.json", lambda d: attributes(d).update(fields(MANY))
    ),
    "unknown fields below": lambda store: change(
        store / "zarr.json", lambda d: attributes(d)["dataset"].update(fields(MANY))
    ),
    "unknown members of the group": lambda store: change(
        store / "zarr.json", lambda d: d.update(fields(MANY))
    ),
    "names that are none": lambda store: change(
        store / "zarr.json", lambda d: attributes(d).update(class_names=[0] * MANY)
    ),
    "versions that are none": lambda store: change(
        store / SNAPSHOT / "zarr.json", lambda d: attributes(d).update(packages=fields(MANY))
    ),
    "temperatures that are none": lambda store: change(
        store / SNAPSHOT / "zarr.json", lambda d: attributes(d).update(temperatures=[-1] * MANY)
    ),
    "entries that are none": lambda store: change(
        store / SNAPSHOT / "commit.json", lambda d: d["objects"].update(fields(MANY))
    ),
    "keys that are none": lambda store: change(
        store / SNAPSHOT / "commit.json",
        lambda d: d["objects"].update(
            {f"/{n}": d["objects"]["zarr.json"] for n in range(MANY // 4)}
        ),
    ),
    "nested": lambda store: (store / "zarr.json").write_text("[" * MANY),
    "nested in a group": lambda store: (store / SNAPSHOT / "zarr.json").write_text(
        '{"attributes":' + "[" * MANY
    ),
    "nested in an array": lambda store: (store / SNAPSHOT / "codes/zarr.json").write_text(
        '{"shape":' + "[" * MANY
    ),
    "nested commit": lambda store: (store / SNAPSHOT / "commit.json").write_text("[" * MANY),
    "long": lambda store: os.truncate(store / "zarr.json", 400 << 20),
    "long commit": lambda store: os.truncate(store / SNAPSHOT / "commit.json", 400 << 20),
}


def test_a_document_of_any_kind_is_refused_in_little_memory(tmp_path: Path) -> None:
    stores = [make_store(tmp_path / "good")]
    for name, spoil in DOCUMENTS.items():
        store = make_store(tmp_path / name.replace(" ", "-"))
        spoil(store)
        if "commit" not in name and "entries" not in name and "keys" not in name:
            commit_again(store)
        stores.append(store)
    said = python(OPEN, *stores)
    refused = {line.split()[0]: int(line.split()[2]) for line in said.splitlines()}
    assert set(refused) == {store.name for store in stores[1:]}
    assert max(refused.values()) < 200, refused
