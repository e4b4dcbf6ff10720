"""What ``build``, ``import`` and ``transcode`` say of a finished snapshot, and ``cache ls``."""

from __future__ import annotations

from typing import Any

import typer

from logitstore.cli.console import emit
from logitstore.format.choice import EncodingWish
from logitstore.reading.describe import describe_store, encoding_text
from logitstore.reading.opening import open_store
from logitstore.text import duration, percent, size, table
from logitstore.writing.estimate import Estimate

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


def estimate_lines(found: Estimate) -> list[str]:
    """An estimate for a person."""
    count = len(found.teachers)
    done = f"; {found.rows_done:,} are done" if found.rows_done else ""
    left = f", {duration(found.seconds_left)} of it left" if found.rows_done else ""
    facts = {
        "dataset": f"{found.dataset}: {found.samples:,} samples, {found.classes} classes",
        "rows": f"{found.rows:,} ({found.views} x {found.samples:,} samples, {count} "
        f"teacher{'s' if count > 1 else ''}){done}",
        "bytes": f"{size(found.bytes)} as {found.encoding}: {found.bytes_per_row:.1f} bytes per "
        "row, metadata included",
        "time": f"{duration(found.seconds)}{left}; {found.rows_per_second:,.0f} rows/s "
        f"(reading alone {1 / found.read_seconds_per_image:,.0f} images/s)",
        "live": f"a student of {found.epochs} epochs with its teacher beside it waits "
        f"{duration(found.live_seconds)} for the teacher",
        "pays off": f"after {_short(found.break_even_students)} such students, or "
        f"{found.break_even_epochs:,.1f} student epochs",
        "measured": f"on {found.sample_rows:,} views",
    }
    teachers = [
        (each.name, f"{1 / each.forward_seconds_per_image:,.0f}", percent(each.top1))
        for each in found.teachers
    ]
    encodings = [
        (
            each.name,
            f"{each.bytes_per_row:.1f}",
            size(each.bytes),
            *(f"{kl:.1g}" for kl in each.kl.values()),
        )
        for each in found.encodings
    ]
    losses = [f"KL, nats, at T={temperature:g}" for temperature in found.encodings[0].kl]
    return [
        *(f"{key:9} {value}" for key, value in facts.items()),
        "",
        *table(("teacher", "forward, images/s", "top-1 of the sample"), teachers),
        "",
        *table(("encoding", "bytes per row", "in all", *losses), encodings),
    ]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
