"""Read the small grammars inside a run's settings: ``split:SHARE`` and ``FILE.json:NAME``."""

from __future__ import annotations

import re
from typing import Literal

from logitstore.errors import InputError

Teach = Literal["all", "confident", "unsure"]

HELD_OUT = "split:0.1"
"""Validation data of a run that has test data alone, so that nothing is chosen on those."""

SPLIT = "split:"


def split_share(val: str | None) -> float | None:
    """Return the share in (0, 1) that ``split:SHARE`` holds out, None if ``val`` is no such text.

    InputError for any other share.
    """
    if val is None or not val.startswith(SPLIT):
        return None
    text = val.removeprefix(SPLIT)
    share = float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+", text) else 0.0
    if not 0 < share < 1:
        raise InputError(
            f"--val {val}: expected the share of the training samples to hold out, above 0 and "
            f"below 1, such as {HELD_OUT}"
        )
    return share


def parse_specialist(text: str) -> tuple[str, str]:
    """Return (plan's file, specialist's name) of ``FILE.json:NAME``, else raise InputError."""
    file, _, name = text.rpartition(":")
    if not file or not name:
        raise InputError(
            f"--specialist {text}: expected FILE.json:NAME, a plan of `logitstore specialists "
            "plan` and the name of one of its specialists"
        )
    return file, name
