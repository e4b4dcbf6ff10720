"""Name the modes in which a teacher's rows can be read; settings import this before any array."""

from __future__ import annotations

from typing import Literal, get_args

from logitstore.errors import InputError

ReadMode = Literal["auto", "materialise", "stream", "direct"]
READ_MODES: tuple[ReadMode, ...] = get_args(ReadMode)


def not_served(location: str) -> InputError:
    """Return the error for streaming from a path."""
    return InputError(
        f"read 'stream' asks a server for rows, and {location} is a path: use --read materialise "
        "or direct, or the URL of `logitstore serve`"
    )
