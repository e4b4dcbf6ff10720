"""Commit the changed objects of a store again: a consistent commit over bytes that no writer made.

Hashes then tell nothing, so that a test sees what the checks behind them refuse.
"""

from __future__ import annotations

from pathlib import Path

from logitstore.format.commits import Commit, ObjectEntry


def commit_again(
    store: Path, *, added: tuple[str, ...] = (), dropped: tuple[str, ...] = ()
) -> None:
    """Write each snapshot's commit anew for the bytes that its objects have by now."""
    for path in sorted(store.glob("snapshots/*/commit.json")):
        before = Commit.parse(str(path), path.read_bytes()).objects
        keys = {*before, *added} - {*dropped}
        objects = {key: ObjectEntry.of((store / key).read_bytes()) for key in sorted(keys)}
        path.write_bytes(Commit.seal(path.parent.name, objects).to_bytes())
