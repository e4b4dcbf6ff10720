"""Write what the commands that make snapshots did, and what ``plan`` expects, as lines."""

from __future__ import annotations

from typing import Any

import typer

from logitstore.cli.console import emit, note
from logitstore.format.choice import EncodingRequest
from logitstore.reading.describe import describe_store, encoding_text
from logitstore.reading.opening import open_store
from logitstore.text import duration, percent, size, table
from logitstore.writing.estimate import Estimate

MUCH_KL = 1e-3
"""Nats of mean KL above which a note is printed if the user named no encoding."""


def print_built(out: str, names: list[str], as_json: bool, request: EncodingRequest) -> None:
    """Print what was written; exit with 1 if all rows together lost more than was allowed."""
    store = describe_store(open_store(out), names)
    for text in built_notes(store, request):
        note(f"note: {text}")
    emit(as_json, store, built_lines(store, request))
    beyond = beyond_bound(store, request)
    for line in beyond:
        note(line)
    if beyond:
        raise typer.Exit(1)


def built_lines(store: dict[str, Any], request: EncodingRequest) -> list[str]:
    """Return one line for each snapshot of ``describe_store``."""
    at = f"T={request.temperature:g}"
    return [
        f"{store['store']}: {entry['name']}: {entry['views'] * entry['samples']:,} rows, teacher "
        f"top-1 {percent(entry['top1'])}, {entry['bytes_per_row']:.1f} bytes per row as "
        f"{encoding_text(entry)}, mean KL {_mean_kl(entry, request):.2g} at {at}, "
        f"root {entry['root']}"
        for entry in store["snapshots"]
    ]


def built_notes(store: dict[str, Any], request: EncodingRequest) -> list[str]:
    """Return notes on what looks like a mistake, though it may be none."""
    notes, at = [], f"T={request.temperature:g}"
    for entry in store["snapshots"]:
        near_chance = entry["top1"] is not None and entry["top1"] < 1.5 / entry["classes"]
        if near_chance and entry["classes"] > 2:
            question = "is --normalize right, and " if entry["teacher"] else ""
            notes.append(
                f"{entry['name']} is near chance on these labels: {question}do the classes come "
                "in the teacher's order?"
            )
        if request.text is None and _mean_kl(entry, request) > MUCH_KL:
            notes.append(
                f"{entry['name']} loses {_mean_kl(entry, request):.2g} nats at {at} as "
                f"{encoding_text(entry)}, which is much (masked classes?); --encoding auto keeps "
                "it below 1e-4"
            )
    return notes


def beyond_bound(store: dict[str, Any], request: EncodingRequest) -> list[str]:
    """Return one line for each snapshot whose rows together lost more than was allowed."""
    bound, at = request.bound, f"T={request.temperature:g}"
    return [
        f"{entry['name']}: all rows lose {_mean_kl(entry, request):.3g} nats at {at} on average, "
        f"more than the {bound:.3g} allowed (the sample lost less): make it again with a smaller "
        f"--max-kl, under another {'--name' if entry['transcoded'] else '--snapshot name'}"
        for entry in store["snapshots"]
        if bound is not None and _mean_kl(entry, request) > bound
    ]


def _mean_kl(entry: dict[str, Any], request: EncodingRequest) -> float:
    """Return the mean KL of a described snapshot, in nats, at the requested temperature."""
    by_temperature = {loss["temperature"]: loss for loss in entry["fidelity"]["divergence"]}
    mean: float = by_temperature[request.temperature]["mean"]
    return mean


def estimate_lines(estimate: Estimate) -> list[str]:
    """Return an estimate as a table of facts, one of teachers and one of encodings."""
    count = len(estimate.teachers)
    done = f"; {estimate.rows_done:,} are done" if estimate.rows_done else ""
    remaining = f", {duration(estimate.seconds_left)} of it left" if estimate.rows_done else ""
    facts = {
        "dataset": f"{estimate.dataset}: {estimate.samples:,} samples, {estimate.classes} classes",
        "rows": f"{estimate.rows:,} ({estimate.views} x {estimate.samples:,} samples, {count} "
        f"teacher{'s' if count > 1 else ''}){done}",
        "bytes": f"{size(estimate.bytes)} as {estimate.encoding}: "
        f"{estimate.bytes_per_row:.1f} bytes per row, metadata included",
        "time": f"{duration(estimate.seconds)}{remaining}; {estimate.rows_per_second:,.0f} rows/s "
        f"(reading alone {1 / estimate.read_seconds_per_image:,.0f} images/s)",
        "live": f"a student of {estimate.epochs} epochs with its teacher beside it waits "
        f"{duration(estimate.live_seconds)} for the teacher",
        "pays off": f"after {_short(estimate.break_even_students)} such students, or "
        f"{estimate.break_even_epochs:,.1f} student epochs",
        "measured": f"on {estimate.sample_rows:,} views",
    }
    teachers = [
        (entry.name, f"{1 / entry.forward_seconds_per_image:,.0f}", percent(entry.top1))
        for entry in estimate.teachers
    ]
    encodings = [
        (
            entry.name,
            f"{entry.bytes_per_row:.1f}",
            size(entry.bytes),
            *(f"{kl:.1g}" for kl in entry.kl.values()),
        )
        for entry in estimate.encodings
    ]
    losses = [f"KL, nats, at T={temperature:g}" for temperature in estimate.encodings[0].kl]
    return [
        *(f"{key:9} {value}" for key, value in facts.items()),
        "",
        *table(("teacher", "forward, images/s", "top-1 of the sample"), teachers),
        "",
        *table(("encoding", "bytes per row", "in all", *losses), encodings),
    ]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
