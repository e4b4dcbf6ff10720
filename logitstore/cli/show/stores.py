from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from logitstore.cache.folder import CopyInfo
from logitstore.text import percent, size, table


def store_lines(found: dict[str, Any]) -> list[str]:
    """``describe_store`` for a person."""
    dataset = found["dataset"]
    lines = [
        f"store     {found['store']}",
        f"dataset   {dataset['name']}: {dataset['length']:,} samples, {found['classes']} classes",
        f"          labels and keys sha256 {dataset['sha256']}",
    ]
    if not found["snapshots"]:
        lines.append("snapshots none committed yet")
    for snapshot in found["snapshots"]:
        lines += ["", *_snapshot_lines(snapshot)]
    return lines


def _snapshot_lines(found: dict[str, Any]) -> list[str]:
    rows = found["views"] * found["samples"]
    lines = [f"snapshot  {found['name']}", f"root      {found['root']}"]
    teacher, imported, view = found["teacher"], found["imported"], found["view"]
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
    lines.append(f"top-1     {percent(found['top1'])} on the store's labels")
    if view:
        steps = ", ".join(step["name"] for step in view["spec"]) or "the image as it is"
        sized = f", size {view['size']}" if view["size"] else ""
        lines.append(f"views     {found['views']} ({steps}{sized}; seed {view['seed']})")
    else:
        lines.append(f"views     {found['views']}")
    lines += [
        f"rows      {rows:,} ({found['views']} x {found['samples']:,} samples, "
        f"{found['classes']} classes)",
        f"encoding  {_encoding(found['encoding'])}: {found['bytes_per_row']:.1f} bytes per row, "
        f"{size(found['bytes'])} in all",
        _fidelity("fidelity", found["fidelity"]),
    ]
    if found["combined"]:
        card = found["combined"]
        lines += [
            f"combined  with specialists: least KL, dustbin by {card['dustbin']}, plan sha256 "
            f"{card['plan_sha256']}",
            f"          generalist root {card['generalist']}",
            *(f"          {each['name']} root {each['root']}" for each in card["specialists"]),
        ]
    if found["transcoded"]:
        before = found["transcoded"]
        lines += [
            f"made from {_encoding(before['encoding'])} rows; the fidelity is against those",
            f"          root {before['root']}",
            _fidelity("          their own", before["fidelity"]),
        ]
    return lines


def _encoding(card: dict[str, Any]) -> str:
    return ", ".join(
        [card["name"], *(f"{key} {value}" for key, value in card["parameters"].items())]
    )


def _fidelity(title: str, found: dict[str, Any]) -> str:
    mean = ", ".join(f"{e['mean']:.2g} at T={e['temperature']:g}" for e in found["divergence"])
    worst = ", ".join(f"{entry['max']:.2g}" for entry in found["divergence"])
    agreement = percent(found["top1_agreement"])
    return f"{title:9} mean KL {mean} nats (worst row {worst}), top-1 agreement {agreement}"


def listing_lines(rows: list[dict[str, Any]]) -> list[str]:
    """``list_location`` for a person."""
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


def copy_lines(folder: str, most_bytes: int, entries: Sequence[CopyInfo]) -> list[str]:
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
