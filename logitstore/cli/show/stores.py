"""Write stores, snapshots and decoded copies as lines for a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from logitstore.cache.folder import CopyInfo
from logitstore.text import percent, size, table


def store_lines(store: dict[str, Any]) -> list[str]:
    """Return the lines of ``describe_store``."""
    dataset = store["dataset"]
    lines = [
        f"store     {store['store']}",
        f"dataset   {dataset['name']}: {dataset['length']:,} samples, {store['classes']} classes",
        f"          labels and keys sha256 {dataset['sha256']}",
    ]
    if not store["snapshots"]:
        lines.append("snapshots none committed yet")
    for snapshot in store["snapshots"]:
        lines += ["", *_snapshot_lines(snapshot)]
    return lines


def _snapshot_lines(snapshot: dict[str, Any]) -> list[str]:
    rows = snapshot["views"] * snapshot["samples"]
    lines = [f"snapshot  {snapshot['name']}", f"root      {snapshot['root']}"]
    teacher, imported, view = snapshot["teacher"], snapshot["imported"], snapshot["view"]
    if teacher:
        normalize = teacher["normalize"]
        shape = "x".join(map(str, teacher["input_shape"]))
        lines += [
            f"teacher   {teacher['file']} as {teacher['architecture']}, "
            f"{teacher['parameters']:,} parameters",
            f"          weights sha256 {teacher['weights_sha256']}",
            f"          input {shape}, {teacher['precision']} on {teacher['device']}, "
            + (
                f"mean {normalize['mean']} std {normalize['std']}"
                if normalize
                else "pixels in [0, 1]"
            ),
        ]
    if imported:
        lines.append(
            f"imported  {imported['file']}, sha256 {imported['sha256']} (bound to no images)"
        )
    lines.append(f"top-1     {percent(snapshot['top1'])} on the store's labels")
    if view:
        steps = ", ".join(step["name"] for step in view["spec"]) or "the image as it is"
        sized = f", size {view['size']}" if view["size"] else ""
        lines.append(f"views     {snapshot['views']} ({steps}{sized}; seed {view['seed']})")
    else:
        lines.append(f"views     {snapshot['views']}")
    lines += [
        f"rows      {rows:,} ({snapshot['views']} x {snapshot['samples']:,} samples, "
        f"{snapshot['classes']} classes)",
        f"encoding  {_encoding(snapshot['encoding'])}: "
        f"{snapshot['bytes_per_row']:.1f} bytes per row, {size(snapshot['bytes'])} in all",
        f"proof     {_proof(snapshot['row_digests'])}",
        _fidelity("fidelity", snapshot["fidelity"]),
    ]
    if snapshot["combined"]:
        card = snapshot["combined"]
        lines += [
            f"combined  with specialists: least KL, dustbin by {card['dustbin']}, plan sha256 "
            f"{card['plan_sha256']}",
            f"          generalist root {card['generalist']}",
            *(f"          {part['name']} root {part['root']}" for part in card["specialists"]),
        ]
    if snapshot["transcoded"]:
        before = snapshot["transcoded"]
        lines += [
            f"made from {_encoding(before['encoding'])} rows; the fidelity is against those",
            f"          root {before['root']}",
            _fidelity("          their own", before["fidelity"]),
        ]
    return lines


def _proof(digests: bool) -> str:
    if digests:
        return "a digest of each row: rows that a server streams are proven"
    return "no row digests: only whole shards are proven, not rows that a server streams"


def _encoding(card: dict[str, Any]) -> str:
    return ", ".join(
        [card["name"], *(f"{key} {value}" for key, value in card["parameters"].items())]
    )


def _fidelity(title: str, fidelity: dict[str, Any]) -> str:
    mean = ", ".join(f"{e['mean']:.2g} at T={e['temperature']:g}" for e in fidelity["divergence"])
    worst = ", ".join(f"{entry['max']:.2g}" for entry in fidelity["divergence"])
    agreement = percent(fidelity["top1_agreement"])
    return f"{title:9} mean KL {mean} nats (worst row {worst}), top-1 agreement {agreement}"


def listing_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of ``list_location``."""
    header = ("store", "snapshot", "rows", "classes", "encoding", "top-1", "bytes", "root")
    cells = [
        (
            row["store"],
            row["snapshot"],
            f"{row['views'] * row['samples']:,}",
            str(row["classes"]),
            ":".join([row["encoding"], *map(str, row["parameters"].values())]),
            percent(row["top1"]),
            size(row["bytes"]),
            row["root"][:12],
        )
        for row in rows
        if "problem" not in row
    ]
    problems = [f"{row['store']}: {row['problem']}" for row in rows if "problem" in row]
    return (table(header, cells) if cells else []) + problems


def copy_lines(folder: str, most_bytes: int, copies: Sequence[CopyInfo]) -> list[str]:
    """List the copies in a cache, and say how much of it they fill."""
    total = size(sum(copy.bytes for copy in copies))
    summary = f"{folder}: {len(copies)} copies, {total} of at most {size(most_bytes)}"
    if not copies:
        return [summary]
    rows = [
        [
            copy.snapshot,
            copy.root[:12],
            size(copy.bytes),
            "now" if copy.in_use else time.strftime("%F %R", time.localtime(copy.last_used)),
            copy.store,
        ]
        for copy in copies
    ]
    return [*table(["snapshot", "root", "bytes", "last used", "from"], rows), summary]
