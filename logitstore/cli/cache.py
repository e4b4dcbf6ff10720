"""``logitstore cache``: list and remove decoded copies."""

from __future__ import annotations

from dataclasses import asdict

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
    from logitstore.cache.cache import Cache
    from logitstore.cli.show.stores import copy_lines

    chosen = Cache.default(cache)
    copies = chosen.entries()
    document = {
        "folder": str(chosen.folder),
        "most_bytes": chosen.most_bytes,
        "copies": [asdict(copy) for copy in copies],
    }
    emit(as_json, document, copy_lines(str(chosen.folder), chosen.most_bytes, copies))


@cache_app.command("clear")
def cache_clear(cache: CacheDir = None, as_json: Json = False) -> None:
    """Remove all copies that are not in use.

    \b
    logitstore cache clear
    """
    from logitstore.cache.cache import Cache

    chosen = Cache.default(cache)
    removed, in_use = chosen.clear()
    freed = size(sum(copy.bytes for copy in removed))
    lines = [f"{chosen.folder}: removed {len(removed)} copies, {freed}"]
    lines += [f"in use and kept: {c.snapshot} of {c.store}, {size(c.bytes)}" for c in in_use]
    document = {
        "folder": str(chosen.folder),
        "removed": [asdict(copy) for copy in removed],
        "kept": [asdict(copy) for copy in in_use],
    }
    emit(as_json, document, lines)
