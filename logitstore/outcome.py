"""What ``build``, ``import`` and ``transcode`` say of a finished snapshot, and ``cache ls``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import typer

from logitstore.cache_folder import Entry
from logitstore.choice import EncodingWish
from logitstore.console import emit, percent, size, table
from logitstore.describe import describe_store, encoding_text
from logitstore.opening import open_store

MUCH_KL = 1e-3
"""More nats than an encoding that nobody asked for should lose without a word."""


def print_built(out: str, names: list[str], as_json: bool, wish: EncodingWish) -> None:
    """What was written; exit code 1 if all rows together lost more than was allowed."""
    found = describe_store(open_store(out), names)
    for note in built_notes(found, wish):
        typer.echo(f"note: {note}", err=True)
    emit(as_json, found, built_lines(found, wish))
    beyond = beyond_bound(found, wish)
    for line in beyond:
        typer.echo(line, err=True)
    if beyond:
        raise typer.Exit(1)


def built_lines(found: dict[str, Any], wish: EncodingWish) -> list[str]:
    """One line for each snapshot of ``describe_store``."""
    return [
        f"{found['store']}: {entry['name']}: {entry['views'] * entry['samples']:,} rows, teacher "
        f"top-1 {percent(entry['top1'])}, {entry['bytes_per_row']:.1f} bytes per row as "
        f"{encoding_text(entry)}, mean KL {_lost(entry, wish):.2g} at T={wish.temperature:g}, "
        f"root {entry['root']}"
        for entry in found["snapshots"]
    ]


def built_notes(found: dict[str, Any], wish: EncodingWish) -> list[str]:
    """What looks like a mistake, though it may be none."""
    notes = []
    for entry in found["snapshots"]:
        near_chance = entry["top1"] is not None and entry["top1"] < 1.5 / entry["classes"]
        if near_chance and entry["classes"] > 2:
            ask = "is --normalize right, and " if entry["teacher"] else ""
            notes.append(
                f"{entry['name']} is near chance on these labels: {ask}do the classes come in the "
                "teacher's order?"
            )
        if wish.text is None and _lost(entry, wish) > MUCH_KL:
            notes.append(
                f"{entry['name']} loses {_lost(entry, wish):.2g} nats at T={wish.temperature:g} as "
                f"{encoding_text(entry)}, which is much (masked classes?); --encoding auto keeps "
                "it below 1e-4"
            )
    return notes


def beyond_bound(found: dict[str, Any], wish: EncodingWish) -> list[str]:
    """One line for each snapshot whose rows together lost more than was allowed."""
    return [
        f"{entry['name']}: all rows lose {_lost(entry, wish):.3g} nats at T={wish.temperature:g} "
        f"on average, more than the {wish.bound:.3g} allowed (the sample lost less): make it again "
        "with a smaller --max-kl, under another "
        f"{'--name' if entry['transcoded'] else '--snapshot name'}"
        for entry in found["snapshots"]
        if wish.bound is not None and _lost(entry, wish) > wish.bound
    ]


def _lost(entry: dict[str, Any], wish: EncodingWish) -> float:
    """Mean KL in nats of a described snapshot, at the temperature of the wish."""
    by_temperature = {loss["temperature"]: loss for loss in entry["fidelity"]["divergence"]}
    lost: float = by_temperature[wish.temperature]["mean"]
    return lost


def copy_lines(folder: str, most_bytes: int, entries: Sequence[Entry]) -> list[str]:
    """The copies in a cache, and how much of it they fill."""
    total = size(sum(entry.bytes for entry in entries))
    summary = f"{folder}: {len(entries)} copies, {total} of at most {size(most_bytes)}"
    if not entries:
        return [summary]
    rows = [
        [
            entry.snapshot,
            entry.root[:12],
            size(entry.bytes),
            "now" if entry.in_use else time.strftime("%F %R", time.localtime(entry.last_used)),
            entry.store,
        ]
        for entry in entries
    ]
    return [*table(["snapshot", "root", "bytes", "last used", "from"], rows), summary]
