"""Stores and snapshots in words and as JSON: what ``ls`` and ``inspect`` print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from logitstore.console import percent, size, table
from logitstore.encodings import encoding, spelled
from logitstore.errors import InputError, LogitstoreError, NotFound
from logitstore.opening import open_store
from logitstore.reader import Snapshot
from logitstore.stores import LogitStore


def describe_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """What a user asks first of a snapshot, JSON-ready."""
    meta = snapshot.meta
    rows = meta.views * meta.samples
    stored = snapshot.stored_bytes()
    return {
        "name": snapshot.name,
        "root": snapshot.root,
        "views": meta.views,
        "samples": meta.samples,
        "classes": meta.classes,
        "encoding": meta.encoding.model_dump(mode="json"),
        "bytes": stored,
        "bytes_per_row": stored / rows,
        "top1": meta.top1,
        "fidelity": meta.fidelity.model_dump(mode="json"),
        "teacher": meta.teacher.model_dump(mode="json") if meta.teacher else None,
        "transcoded": meta.transcoded.model_dump(mode="json") if meta.transcoded else None,
        "combined": meta.combined.model_dump(mode="json") if meta.combined else None,
        "imported": meta.imported.model_dump(mode="json") if meta.imported else None,
        "view": meta.view.model_dump(mode="json", exclude={"canaries"}) if meta.view else None,
        "packages": meta.packages,
    }


def describe_store(store: LogitStore, names: list[str] | None = None) -> dict[str, Any]:
    """A store and its (or the named) snapshots, JSON-ready."""
    chosen = list(store.snapshots) if names is None else names
    return {
        "store": store.url,
        **store.meta.model_dump(mode="json"),
        "snapshots": [describe_snapshot(store.snapshots[name]) for name in chosen],
    }


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


def encoding_text(found: dict[str, Any]) -> str:
    """What ``--encoding`` takes for the encoding of a described snapshot: "uint8:64"."""
    card = found["encoding"]
    return spelled(encoding(card["name"], found["classes"], card["parameters"]))


def _fidelity(title: str, found: dict[str, Any]) -> str:
    mean = ", ".join(f"{e['mean']:.2g} at T={e['temperature']:g}" for e in found["divergence"])
    worst = ", ".join(f"{entry['max']:.2g}" for entry in found["divergence"])
    agreement = percent(found["top1_agreement"])
    return f"{title:9} mean KL {mean} nats (worst row {worst}), top-1 agreement {agreement}"


def list_location(location: str, token: str | None) -> list[dict[str, Any]]:
    """Stores at a path, under a folder, or on a server: one JSON-ready row for each snapshot."""
    if location.startswith(("http://", "https://")):
        return _list_remote(location, token)
    path = Path(location)
    if not path.is_dir():
        raise NotFound(f"{location}: there is no such folder")
    if (path / "zarr.json").is_file():
        return _rows_of(location, None)
    places = sorted(path.iterdir())
    found: list[dict[str, Any]] = []
    for place in places:
        if (place / "zarr.json").is_file():
            found += _list_store(str(place))
    if not found:
        raise InputError(f"{location}: no logit stores here; `logitstore build --out …` makes one")
    return found


def _list_store(location: str, token: str | None = None) -> list[dict[str, Any]]:
    """One of several stores: what is wrong with it must not hide the others."""
    try:
        return _rows_of(location, token)
    except LogitstoreError as error:
        return [{"store": location, "problem": str(error)}]


def _rows_of(location: str, token: str | None) -> list[dict[str, Any]]:
    rows = [
        {
            "store": location,
            "snapshot": name,
            "views": snapshot.meta.views,
            "samples": snapshot.meta.samples,
            "classes": snapshot.meta.classes,
            "encoding": snapshot.meta.encoding.name,
            "top1": snapshot.meta.top1,
            "bytes": snapshot.stored_bytes(),
            "root": snapshot.root,
        }
        for name, snapshot in open_store(location, token).snapshots.items()
    ]
    return rows or [{"store": location, "problem": "no committed snapshot yet"}]


def _list_remote(location: str, token: str | None) -> list[dict[str, Any]]:
    from urllib.parse import urlsplit

    from logitstore.remote import list_stores

    if urlsplit(location).path.strip("/"):
        return _rows_of(location, token)
    base = location.rstrip("/")
    return [
        row
        for entry in list_stores(location, token)
        for row in _list_store(f"{base}/{entry.name}", token)
    ]


def listing_lines(rows: list[dict[str, Any]]) -> list[str]:
    """``list_location`` for a person."""
    header = ("store", "snapshot", "rows", "classes", "encoding", "top-1", "bytes", "root")
    cells = [
        (
            row["store"],
            row["snapshot"],
            f"{row['views'] * row['samples']:,}",
            str(row["classes"]),
            row["encoding"],
            percent(row["top1"]),
            size(row["bytes"]),
            row["root"][:12],
        )
        for row in rows
        if "problem" not in row
    ]
    problems = [f"{row['store']}: {row['problem']}" for row in rows if "problem" in row]
    return (table(header, cells) if cells else []) + problems
