"""Schedules: floats as functions of the epoch, so that a resumed run needs its number alone.

Epochs count from 0.  ``fraction`` is how much of the epoch is done after the step at hand, in
(0, 1]: only the warm-up looks at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from logitstore.errors import UnknownName

T = TypeVar("T")


def step_factor(epoch: int, *, milestones: Sequence[int], decay: float) -> float:
    """Return decay to the number of milestones reached; milestone 60 acts from epoch 61 on."""
    return float(decay ** sum(epoch >= milestone for milestone in milestones))


def cosine_factor(epoch: int, *, epochs: int) -> float:
    """Return half a cosine, from 1 to 0 at ``epochs`` (SGDR, arXiv:1608.03983, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def warmup_factor(position: float, *, warmup_epochs: int) -> float:
    """Return a line from 0 to 1 over the first epochs; ``position`` is epoch + fraction."""
    return 1.0 if position >= warmup_epochs else position / warmup_epochs


def rising_share(epoch: int, *, epochs: int) -> float:
    """Return (epoch + 1) / epochs, at most 1; 1 if ``epochs`` is 0.

    DKD warms up so over its first epochs (Zhao et al. 2022, its code counts epochs from 1), and
    PS-KD's trust in the past grows so over all of them (Kim et al. 2021).
    """
    return min((epoch + 1) / epochs, 1.0) if epochs else 1.0


def distils(epoch: int, *, stop: int | None) -> bool:
    """Return whether a teacher still teaches: in the first ``stop`` epochs, None: in all.

    Cho, Hariharan 2019, arXiv:1910.01348: early-stopped distillation.
    """
    return stop is None or epoch < stop


def teacher_at(epoch: int, *, turns: Sequence[tuple[int, T]]) -> T:
    """Return the teacher of this epoch; ``turns`` are (first epoch, teacher), from epoch 0 on."""
    return next(teacher for first, teacher in reversed(turns) if first <= epoch)


def learning_rate(
    epoch: int,
    fraction: float,
    *,
    base: float,
    epochs: int,
    schedule: str,
    milestones: Sequence[int] = (),
    decay: float = 0.1,
    warmup_epochs: int = 0,
) -> float:
    """Return the learning rate of one step.

    The warm-up multiplies ``base``; the cosine runs over the epochs after it, milestones count from
    the first epoch of all.
    """
    match schedule:
        case "constant":
            factor = 1.0
        case "step":
            factor = step_factor(epoch, milestones=milestones, decay=decay)
        case "cosine":
            after = max(epoch - warmup_epochs, 0)
            factor = cosine_factor(after, epochs=epochs - warmup_epochs)
        case _:
            raise UnknownName.among("schedule", schedule, ("constant", "step", "cosine"))
    return base * factor * warmup_factor(epoch + fraction, warmup_epochs=warmup_epochs)
