from __future__ import annotations

import typer

from logitstore.cli.console import emit
from logitstore.cli.options import CacheDir, Json
from logitstore.text import size

cache_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Decoded copies of snapshots on this disk.

    They are made when a snapshot is first read, shared by all processes, and removed, least
    recently used first, when together they would exceed LOGITSTORE_CACHE_BYTES (64 GiB).""",
)


@cache_app.command("ls")
def cache_ls(cache: CacheDir = None, as_json: Json = False) -> None:
    """List the copies, the least recently used one first.

    \b
    logitstore cache ls
    """
    from dataclasses import asdict

    from logitstore.cache.cache import Cache
    from logitstore.cli.show.stores import copy_lines

    found = Cache.default(cache)
    entries = found.entries()
    document = {
        "folder": str(found.folder),
        "most_bytes": found.most_bytes,
        "copies": [asdict(entry) for entry in entries],
    }
    emit(as_json, document, copy_lines(str(found.folder), found.most_bytes, entries))


@cache_app.command("clear")
def cache_clear(cache: CacheDir = None, as_json: Json = False) -> None:
    """Remove all copies that are not in use.

    \b
    logitstore cache clear
    """
    from dataclasses import asdict

    from logitstore.cache.cache import Cache

    found = Cache.default(cache)
    removed, kept = found.clear()
    freed = size(sum(entry.bytes for entry in removed))
    lines = [f"{found.folder}: removed {len(removed)} copies, {freed}"]
    lines += [f"in use and kept: {e.snapshot} of {e.store}, {size(e.bytes)}" for e in kept]
    document = {
        "folder": str(found.folder),
        "removed": [asdict(entry) for entry in removed],
        "kept": [asdict(entry) for entry in kept],
    }
    emit(as_json, document, lines)
